"""One sample of a shard, looked at as closely as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.jpeg import decode_jpeg, list_metadata
from sam_train.shards.maintenance.findings import Finding, finding
from sam_train.shards.maintenance.rle_geometry import ColumnRuns, rle_to_column_runs

_PERSONAL = ("EXIF", "XMP", "IPTC")
_BOX_TOLERANCE_PX = 0.5

Say = Callable[[str, str, str], Finding]
"""(field, reason, message) to the finding of a sample."""


def check_sample(shard: str, key: str, *, jpeg: bytes, document: bytes) -> tuple[list[Finding], ImageRecord | None]:
    """What is wrong with a pair of members, and its record where it has one that the schema takes."""

    def say(field: str, reason: str, message: str) -> Finding:
        return finding(shard, key, field, reason, message)

    found = list(_check_jpeg(jpeg, say))
    size = decoded_size(jpeg)
    try:
        record = ImageRecord.from_json(document, key=key)
    except ShardError as error:
        return [*found, say(error.field or "json", "bad_record", str(error))], None
    if size is None:
        found.append(say("jpg", "undecodable_jpeg", "the JPEG does not decode: replace it, or leave the sample out"))
    elif size != (record.height, record.width):
        message = f"the JPEG is {size[1]} x {size[0]}, the record says {record.width} x {record.height}"
        found.append(say("image.width" if size[1] != record.width else "image.height", "wrong_size", message))
    return found + list(check_masks(record, say)), record


def decoded_size(jpeg: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that decodes to its last pixel, None for any other bytes."""
    try:
        height, width, _ = decode_jpeg(jpeg).shape
    except SkipSampleError:
        return None
    return height, width


def check_masks(record: ImageRecord, say: Say) -> Iterator[Finding]:
    """Each mask against its own numbers."""
    ids: set[int] = set()
    for index, mask in enumerate(record.masks):
        place = f"annotations[{index}]"
        if mask.id in ids:
            yield say(f"{place}.id", "duplicate_mask_id", f"a mask before it has the id {mask.id} too")
        ids.add(mask.id)
        try:
            segments = rle_to_column_runs(
                mask.segmentation, height=record.height, width=record.width, field=f"{place}.segmentation"
            )
        except ShardError as error:
            yield say(error.field, "bad_rle", str(error))
            continue
        if mask.area != segments.area():
            yield say(f"{place}.area", "wrong_area", f"area {mask.area}, the mask has {segments.area()} pixels")
        if not box_matches_mask(mask, segments):
            yield say(f"{place}.bbox", "wrong_box", f"bbox {mask.bbox}, the mask's is {segments.box_xywh()}")


def box_matches_mask(mask: MaskRecord, segments: ColumnRuns) -> bool:
    """Whether `bbox` is the mask's: COCO's, or one less in width and height, as the released generator counts."""
    x, y, width, height = segments.box_xywh()
    differences = [given - right for given, right in zip(mask.bbox, (x, y, width, height), strict=True)]
    at_corner = all(abs(difference) <= _BOX_TOLERANCE_PX for difference in differences[:2])
    return at_corner and all(-1 - _BOX_TOLERANCE_PX <= difference <= _BOX_TOLERANCE_PX for difference in differences[2:])


def _check_jpeg(jpeg: bytes, say: Say) -> Iterator[Finding]:
    left = list_metadata(jpeg)
    if personal := [kind for kind in left if kind in _PERSONAL]:
        yield say("jpg", "exif", f"{', '.join(personal)} in the JPEG: sam-data repair takes it out without touching a pixel")
    if others := [kind for kind in left if kind not in _PERSONAL]:
        yield say("jpg", "other_metadata", f"{', '.join(others)} in the JPEG")
