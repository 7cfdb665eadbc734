"""A sample's JSON to its record, three times as fast as `ImageRecord.from_json` and as strict.

msgspec checks types, lengths and unknown keys while it reads. What it refuses goes to `ImageRecord.from_json`, which either
says what is wrong in words of ours or, where it is the more patient of the two, takes it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sam_train.records import ImageRecord, MaskRecord, Provenance

_Two = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]
_Three = Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
_Four = Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]


_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Rle(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[list[_Int], msgspec.Meta(min_length=2, max_length=2)]
    counts: str


class _Provenance(msgspec.Struct, forbid_unknown_fields=True):
    stage: str
    checkpoint: str
    annotator: str
    config: str
    prompts: list[_Three]
    seconds: float


class _Mask(msgspec.Struct, forbid_unknown_fields=True):
    id: _Int
    segmentation: _Rle
    bbox: _Four
    area: _Int
    predicted_iou: float
    stability_score: float
    crop_box: _Four
    point_coords: list[_Two]
    provenance: _Provenance | None = None


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    image_id: _Int
    width: _Int
    height: _Int
    file_name: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    image: _Image
    annotations: list[_Mask]


_DECODER = msgspec.json.Decoder(_Document)


def parse_record(data: bytes, *, key: str, shard: str = "") -> ImageRecord:
    """`ImageRecord.from_json` and its ShardErrors; numbers that may have a fraction are floats here."""
    try:
        document = _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ImageRecord.from_json(data, key=key, shard=shard)
    image = document.image
    masks = [_mask(mask) for mask in document.annotations]
    return ImageRecord(key=key, image_id=image.image_id, width=image.width, height=image.height, masks=masks)


def _mask(mask: _Mask) -> MaskRecord:
    source = mask.provenance
    provenance = None if source is None else Provenance(**{name: getattr(source, name) for name in source.__struct_fields__})
    return MaskRecord(
        id=mask.id,
        segmentation={"size": mask.segmentation.size, "counts": mask.segmentation.counts},
        bbox=mask.bbox,
        area=mask.area,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        crop_box=mask.crop_box,
        point_coords=mask.point_coords,
        provenance=provenance,
    )
