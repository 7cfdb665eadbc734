"""Fast parser for the fields of a sample's JSON that training needs, ten times as fast as `ImageRecord.from_json`.

msgspec checks types, lengths and unknown keys of the fields that it reads. What it rejects is passed to
`ImageRecord.from_json`, which raises an error with our message or, where it is more lenient, accepts it. Boxes, points and
provenance do not enter the targets and are not parsed, except for the names if they are requested: they are thousands of
numbers for a hundred masks (`sam-data validate` checks them).
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


class _Provenance(msgspec.Struct, gc=False):
    """The name in a provenance; other keys are ignored."""

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
_PROVENANCE_DECODER = msgspec.json.Decoder(_Provenance)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRecord:
    """The fields of an `ImageRecord` from which training targets are made: N masks in the image frame."""

    key: str
    image_id: int
    height: int
    width: int
    areas: Sequence[int]
    """Area of each mask in pixels, as recorded."""
    rles: Sequence[Rle]
    mask_ids: Sequence[int]
    names: Sequence[str] | None = None
    """Name of each mask, "" if it has none; None if names were not requested."""
    text_embeddings: np.ndarray | None = None
    """N x E text embeddings of the masks; None if the dataset has no `text_store`."""

    @staticmethod
    def from_image_record(record: ImageRecord, *, names: bool = False) -> TargetRecord:
        """Return the target fields of a parsed record, with the names if `names` is set."""
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

    def select_masks(self, indices: Sequence[int], text_embeddings: np.ndarray) -> TargetRecord:
        """Return a record of the masks at `indices`, with a text embedding (n x E) for each."""
        return replace(
            self,
            areas=[self.areas[i] for i in indices],
            rles=[self.rles[i] for i in indices],
            mask_ids=[self.mask_ids[i] for i in indices],
            names=self.names and [self.names[i] for i in indices],
            text_embeddings=text_embeddings,
        )


def parse_target_record(data: bytes, *, key: str, shard: str = "", names: bool = False) -> TargetRecord:
    """Parse the JSON of a sample, with the names of its masks if `names` is set.

    Raises the errors of `ImageRecord.from_json` for the fields that are read.
    """
    try:
        document = _DECODER.decode(data)
        mask_names = [_mask_name(mask) for mask in document.annotations] if names else None
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
        names=mask_names,
    )


def _mask_name(mask: _Mask) -> str:
    return _PROVENANCE_DECODER.decode(mask.provenance).name if mask.provenance else ""
