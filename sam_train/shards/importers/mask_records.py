"""Creation of mask records from the RLEs and id maps of data sets. For polygons see `polygons`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam_train.errors import ShardError
from sam_train.records import MaskRecord, Provenance, Rle
from sam_train.rle import encode_rle, rle_total_pixels


def mask_record_from_rle(
    rle: Rle, *, mask_id: int, annotator: str, name: str = "", predicted_iou: float = 1.0, stability_score: float = 1.0
) -> MaskRecord:
    """Return the record of a valid RLE, whose size is that of the image.

    Box and area are measured on the RLE, whatever the data set says. The scores of a data set's mask are 1 by default, because
    it is ground truth. `name` is its class name in the data set.
    """
    height, width = rle["size"]
    encoded = {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    return MaskRecord(
        id=mask_id,
        segmentation=rle,
        bbox=[float(number) for number in coco_mask.toBbox(encoded)],
        area=int(coco_mask.area(encoded)),
        predicted_iou=predicted_iou,
        stability_score=stability_score,
        crop_box=[0.0, 0.0, float(width), float(height)],
        point_coords=[],
        provenance=Provenance(stage="import", checkpoint="", annotator=annotator, config="", name=name),
    )


def mask_records_from_id_map(
    ids: np.ndarray, *, annotator: str, counts: Counter[str], min_area: int = 1, name_of: Callable[[int], str] | None = None
) -> list[MaskRecord]:
    """Return one record per non-zero value of an H x W map of unsigned integers, in order; the value is the mask's id.

    `name_of(value)` returns the class name of a mask. Masks of fewer than `min_area` pixels are dropped and counted as
    "below_min_area".
    """
    records = []
    for instance, area in zip(*np.unique(ids, return_counts=True), strict=True):
        if instance == 0:
            continue
        if area < min_area:
            counts["below_min_area"] += 1
            continue
        name = name_of(int(instance)) if name_of else ""
        record = mask_record_from_rle(encode_rle(ids == instance), mask_id=int(instance), annotator=annotator, name=name)
        records.append(record)
    return records


def parse_rle(value: dict[str, Any], *, height: int, width: int, place: str) -> Rle:
    """Validate a COCO RLE from JSON and return it compressed; `counts` may be compressed (a string) or a list of run lengths.

    A compressed RLE is returned unchanged. Raises ShardError, naming `place`, unless its size is [height, width] and its runs
    add up to that many pixels.
    """
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ShardError(f"{place}: RLE size {str(size)[:80]} is not the image's [{height}, {width}]")
    if isinstance(counts, str):
        num_pixels = rle_total_pixels(counts)
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run <= height * width for run in counts):
        num_pixels = sum(counts)
    else:
        raise ShardError(f"{place}: RLE counts are neither a string nor a list of runs of at most {height * width} pixels")
    if num_pixels != height * width:
        problem = "are malformed" if num_pixels < 0 else f"add up to {num_pixels} pixels"
        raise ShardError(f"{place}: RLE runs {problem}, the image has {height * width}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    compressed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}
