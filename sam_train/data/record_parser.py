"""A sample's JSON to what a training step needs of its record, ten times as fast as `ImageRecord.from_json`.

msgspec checks types, lengths and unknown keys of what it reads. What it refuses goes to `ImageRecord.from_json`, which either
says what is wrong in words of ours or, where it is the more patient of the two, takes it. Boxes, points and provenance, of
which no target is made, are not looked into, but for names where they are asked for: a hundred masks have thousands of numbers
there (`sam-data validate` looks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import numpy as np

from sam_train.records import ImageRecord, Rle, check_image_size, check_key

_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Rle(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    size: Annotated[list[_Int], msgspec.Meta(min_length=2, max_length=2)]
    counts: str


class _Mask(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: _Int
    segmentation: _Rle
    bbox: msgspec.Raw
    area: _Int
    predicted_iou: float
    stability_score: float
    crop_box: msgspec.Raw
    point_coords: msgspec.Raw
    provenance: msgspec.Raw = msgspec.Raw()


class _Named(msgspec.Struct, gc=False):
    """Of a provenance, the name; what else stands there is passed by."""

    name: str = ""


class _Image(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    image_id: _Int
    width: _Int
    height: _Int
    file_name: str


class _Document(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    image: _Image
    annotations: list[_Mask]


_DECODER = msgspec.json.Decoder(_Document)
_NAME_DECODER = msgspec.json.Decoder(_Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """Of an ImageRecord, what becomes targets: N masks in the image frame."""

    key: str
    image_id: int
    height: int
    width: int
    areas: Sequence[int]
    """In pixels, as the record says."""
    rles: Sequence[Rle]
    mask_ids: Sequence[int]
    names: Sequence[str] | None = None
    """What each shows, empty where nobody said; None where they were not asked for."""
    text_embeddings: np.ndarray | None = None
    """N x E, of their words; None where they have none."""

    @staticmethod
    def from_image_record(record: ImageRecord, *, names: bool = False) -> TargetRecord:
        """From the record itself."""
        return TargetRecord(
            key=record.key,
            image_id=record.image_id,
            height=record.height,
            width=record.width,
            areas=[mask.area for mask in record.masks],
            rles=[mask.segmentation for mask in record.masks],
            mask_ids=[mask.id for mask in record.masks],
            names=[mask.name for mask in record.masks] if names else None,
        )

    def select_masks(self, places: Sequence[int], text_embeddings: np.ndarray) -> TargetRecord:
        """Some of its masks, with an embedding (n x E) each."""
        return replace(
            self,
            areas=[self.areas[i] for i in places],
            rles=[self.rles[i] for i in places],
            mask_ids=[self.mask_ids[i] for i in places],
            names=self.names and [self.names[i] for i in places],
            text_embeddings=text_embeddings,
        )


def parse_target_record(data: bytes, *, key: str, shard: str = "", names: bool = False) -> TargetRecord:
    """`names` says whether to look for them. Raises what `ImageRecord.from_json` does of what is read."""
    try:
        document = _DECODER.decode(data)
        named = [_name_of(mask) for mask in document.annotations] if names else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return TargetRecord.from_image_record(ImageRecord.from_json(data, key=key, shard=shard), names=names)
    image, masks = document.image, document.annotations
    check_key(key, shard=shard)
    check_image_size(image.width, image.height, key=key, shard=shard)
    return TargetRecord(
        key=key,
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        areas=[mask.area for mask in masks],
        rles=[{"size": mask.segmentation.size, "counts": mask.segmentation.counts} for mask in masks],
        mask_ids=[mask.id for mask in masks],
        names=named,
    )


def _name_of(mask: _Mask) -> str:
    source = mask.provenance
    return _NAME_DECODER.decode(source).name if source else ""
