"""Repair of one damaged sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.jpeg import strip_metadata
from sam_train.shards.maintenance.rle_geometry import rle_to_column_runs
from sam_train.shards.maintenance.sample_checks import box_matches_mask, decoded_size


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairedSample:
    """A repaired sample, and the number of repairs by name: area_recomputed, mask_dropped_bad_rle, ..."""

    record: ImageRecord
    jpeg: bytes
    counts: Counter[str]


def repair_sample(key: str, *, jpegs: Iterable[bytes], documents: Iterable[bytes]) -> RepairedSample:
    """Combine the first JPEG that decodes with the first valid record, and correct the record to fit the image.

    - Metadata of the JPEG is removed; its pixels stay.
    - Width and height are corrected to those of the JPEG if a mask has the JPEG's size, or if there is no mask.
    - Annotations that violate the schema, and masks whose RLE is invalid or of another size, are dropped; area and box are
      recomputed.
    - Of two masks with the same id the second is dropped if it is the same mask, otherwise it gets a new id.

    Raises SkipSampleError with the reason "undecodable_jpeg", "bad_record" or "wrong_size" if nothing can be kept.
    """
    counts: Counter[str] = Counter()
    jpeg, size = _first_jpeg(key, jpegs, counts)
    record = _with_size(_first_record(key, documents, counts), size, counts)
    masks = [fixed for mask in record.masks if (fixed := _repair_mask(mask, record, counts)) is not None]
    return RepairedSample(record=replace(record, masks=_with_ids(masks, counts)), jpeg=jpeg, counts=counts)


def _first_jpeg(key: str, jpegs: Iterable[bytes], counts: Counter[str]) -> tuple[bytes, tuple[int, int]]:
    for jpeg in jpegs:
        if (size := decoded_size(jpeg)) is None:
            continue
        try:
            bare = strip_metadata(jpeg)
        except ValueError:  # decoders are more tolerant: they would return an image whose end is undefined
            continue
        counts["metadata_removed"] += bare != jpeg
        return bare, size
    raise SkipSampleError("undecodable_jpeg", "no JPEG of this key decodes", key=key)


def _first_record(key: str, documents: Iterable[bytes], counts: Counter[str]) -> ImageRecord:
    partial: tuple[ImageRecord, int] | None = None
    for document in documents:
        try:
            return ImageRecord.from_json(document, key=key)
        except ShardError:
            partial = partial or _readable_annotations(key, document)
    if partial is None:
        raise SkipSampleError("bad_record", "no JSON of this key is a valid record", key=key)
    counts["mask_dropped_bad_record"] += partial[1]
    return partial[0]


def _readable_annotations(key: str, document: bytes) -> tuple[ImageRecord, int] | None:
    """Return the record without the annotations that violate the schema, and their number; None if the rest is invalid."""
    try:
        content = json.loads(document)
        record = ImageRecord.from_json(_document(content["image"], []), key=key)
        annotations = list(content["annotations"])
    except (ValueError, RecursionError, KeyError, TypeError, ShardError):
        return None
    masks = []
    for annotation in annotations:
        try:
            masks += ImageRecord.from_json(_document(content["image"], [annotation]), key=key).masks
        except ShardError:
            continue  # counted below
    return replace(record, masks=masks), len(annotations) - len(masks)


def _document(image: object, annotations: list[object]) -> bytes:
    return json.dumps({"image": image, "annotations": annotations}).encode()


def _with_size(record: ImageRecord, size: tuple[int, int], counts: Counter[str]) -> ImageRecord:
    height, width = size
    if (record.height, record.width) == size:
        return record
    if record.masks and not any(mask.segmentation["size"] == [height, width] for mask in record.masks):
        message = f"the JPEG is {width} x {height}, and no mask has that size"
        raise SkipSampleError("wrong_size", message, key=record.key)
    counts["size_corrected"] += 1
    return replace(record, height=height, width=width)


def _repair_mask(mask: MaskRecord, record: ImageRecord, counts: Counter[str]) -> MaskRecord | None:
    try:
        segments = rle_to_column_runs(mask.segmentation, height=record.height, width=record.width)
    except ShardError:
        counts["mask_dropped_bad_rle"] += 1
        return None
    if mask.area != segments.area():
        counts["area_recomputed"] += 1
        mask = replace(mask, area=segments.area())
    if not box_matches_mask(mask, segments):
        counts["box_recomputed"] += 1
        mask = replace(mask, bbox=segments.box_xywh())
    return mask


def _with_ids(masks: list[MaskRecord], counts: Counter[str]) -> list[MaskRecord]:
    by_id: dict[int, MaskRecord] = {}
    later = []
    for mask in masks:
        if mask.id not in by_id:
            by_id[mask.id] = mask
        elif mask.segmentation == by_id[mask.id].segmentation:
            counts["mask_dropped_duplicate"] += 1
        else:
            later.append(mask)
    counts["mask_id_renewed"] += len(later)
    following = max(by_id, default=0) + 1
    return [*by_id.values(), *(replace(mask, id=following + index) for index, mask in enumerate(later))]
