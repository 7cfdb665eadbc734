"""Checks of one sample: JPEG, record, and the numbers of each mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.jpeg import decode_jpeg, list_metadata
from sam_train.shards.maintenance.findings import Finding, finding
from sam_train.shards.maintenance.rle_geometry import ColumnRuns, rle_to_column_runs

_PERSONAL = ("EXIF", "XMP", "IPTC")
_BOX_TOLERANCE_PX = 0.5

MakeFinding = Callable[[str, str, str], Finding]
"""Function from (field, reason, message) to the finding of a sample."""


def check_sample(shard: str, key: str, *, jpeg: bytes, document: bytes) -> tuple[list[Finding], ImageRecord | None]:
    """Return the findings for the two members of a sample, and its record, None if the record is invalid."""

    def make_finding(field: str, reason: str, message: str) -> Finding:
        return finding(shard, key, field, reason, message)

    found = list(_check_jpeg(jpeg, make_finding))
    size = decoded_size(jpeg)
    try:
        record = ImageRecord.from_json(document, key=key)
    except ShardError as error:
        return [*found, make_finding(error.field or "json", "bad_record", str(error))], None
    if size is None:
        found.append(make_finding("jpg", "undecodable_jpeg", "the JPEG does not decode: replace it, or drop the sample"))
    elif size != (record.height, record.width):
        message = f"the JPEG is {size[1]} x {size[0]}, the record says {record.width} x {record.height}"
        found.append(make_finding("image.width" if size[1] != record.width else "image.height", "wrong_size", message))
    return found + list(check_masks(record, make_finding)), record


def decoded_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG that decodes completely, None for any other bytes."""
    try:
        height, width, _ = decode_jpeg(jpeg).shape
    except SkipSampleError:
        return None
    return height, width


def check_masks(record: ImageRecord, make_finding: MakeFinding) -> Iterator[Finding]:
    """Yield findings on masks whose RLE is invalid, or whose id, area or box is wrong."""
    ids: set[int] = set()
    for index, mask in enumerate(record.masks):
        path = f"annotations[{index}]"
        if mask.id in ids:
            yield make_finding(f"{path}.id", "duplicate_mask_id", f"an earlier mask has the same id {mask.id}")
        ids.add(mask.id)
        try:
            segments = rle_to_column_runs(
                mask.segmentation, height=record.height, width=record.width, field=f"{path}.segmentation"
            )
        except ShardError as error:
            yield make_finding(error.field, "bad_rle", str(error))
            continue
        if mask.area != segments.area():
            yield make_finding(f"{path}.area", "wrong_area", f"area {mask.area}, the mask has {segments.area()} pixels")
        if not box_matches_mask(mask, segments):
            yield make_finding(f"{path}.bbox", "wrong_box", f"bbox {mask.bbox}, the mask's is {segments.box_xywh()}")


def box_matches_mask(mask: MaskRecord, segments: ColumnRuns) -> bool:
    """Return whether `bbox` is the box of the mask: COCO's, or one less in width and height, as by the released generator."""
    x, y, width, height = segments.box_xywh()
    differences = [actual - expected for actual, expected in zip(mask.bbox, (x, y, width, height), strict=True)]
    at_corner = all(abs(difference) <= _BOX_TOLERANCE_PX for difference in differences[:2])
    return at_corner and all(-1 - _BOX_TOLERANCE_PX <= difference <= _BOX_TOLERANCE_PX for difference in differences[2:])


def _check_jpeg(jpeg: bytes, make_finding: MakeFinding) -> Iterator[Finding]:
    left = list_metadata(jpeg)
    if personal := [kind for kind in left if kind in _PERSONAL]:
        yield make_finding("jpg", "exif", f"{', '.join(personal)} in the JPEG: sam-data repair removes it and keeps the pixels")
    if others := [kind for kind in left if kind not in _PERSONAL]:
        yield make_finding("jpg", "other_metadata", f"{', '.join(others)} in the JPEG")
