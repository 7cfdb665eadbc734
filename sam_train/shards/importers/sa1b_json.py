"""Reading of SA-1B's JSON and of the list of masks that SAM's mask generator writes (scripts/amg.py with --convert-to-rle)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sam_train.errors import ShardError
from sam_train.records import MASK_KEYS, ImageRecord
from sam_train.rle import rle_area, rle_to_box_xywh
from sam_train.shards.importers.json_values import as_integer, parse_json
from sam_train.shards.importers.mask_records import parse_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.segmentations import segmentation_to_rle
from sam_train.shards.keys import image_id_from_path


def parse_sa1b_json(
    data: bytes, *, file_name: str, key: str, size: tuple[int, int] | None, place: str, report: ImportReport
) -> ImageRecord:
    """Parse the JSON of one image to its record.

    A JSON with exactly SA-1B's keys is kept as it is. Otherwise further keys are dropped ("key_dropped"), and absent scores,
    boxes, areas and ids are filled in ("record_completed"); `size` is the (width, height) of the image where the JSON has none.
    Raises ShardError, naming `place`, if it is neither SA-1B's nor the generator's, is of another image than `file_name`, or has
    masks that do not fit it.
    """
    document = parse_json(data, place=place)
    try:
        record = ImageRecord.from_json(data, key=key, shard=place)
    except ShardError as error:
        normalised = _normalise(document, error, file_name=file_name, size=size, place=place, report=report)
        record = ImageRecord.from_json(json.dumps(normalised).encode(), key=key, shard=place)
    else:
        _check_file_name(document["image"]["file_name"], file_name, place)
    for index, mask in enumerate(record.masks):
        parse_rle(mask.segmentation, height=record.height, width=record.width, place=f"{place}, annotations[{index}]")
    return record


def _check_file_name(name: object, file_name: str, place: str) -> None:
    if not isinstance(name, str) or PurePosixPath(name).with_suffix("") != PurePosixPath(file_name).with_suffix(""):
        raise ShardError(f"{place} is for the image {str(name)[:200]!r}, expected {file_name!r}")


def _normalise(
    document: Any, error: ShardError, *, file_name: str, size: tuple[int, int] | None, place: str, report: ImportReport
) -> dict[str, Any]:
    """Return the document with exactly SA-1B's keys. Raises `error` if it is neither SA-1B's nor a list of masks."""
    if isinstance(document, list):
        image, annotations = {}, document
    elif isinstance(document, dict) and isinstance(document.get("annotations"), list) and isinstance(document.get("image"), dict):
        image, annotations = document["image"], document["annotations"]
        report.counts.update(["key_dropped"] if set(document) - {"image", "annotations"} else [])
    else:
        raise error
    sides = tuple(as_integer(image.get(side)) for side in ("width", "height"))
    if None in sides:
        sides = size or (None, None)
    if "file_name" in image:
        _check_file_name(image["file_name"], file_name, place)
    image_id = as_integer(image.get("image_id"))
    entry = {
        "image_id": image_id_from_path(file_name) if image_id is None else image_id,
        "width": sides[0],
        "height": sides[1],
        "file_name": file_name,
    }
    masks = []
    for index, annotation in enumerate(annotations):
        where = f"{place}, annotations[{index}]"
        with report.entry("annotation", where):
            masks.append(_complete(annotation, index, entry, where, report))
    return {"image": entry, "annotations": masks}


def _complete(annotation: Any, index: int, image: Mapping[str, Any], place: str, report: ImportReport) -> dict[str, Any]:
    if not isinstance(annotation, dict):
        raise ShardError(f"{place}: expected an object, got {str(annotation)[:80]}")
    height, width = image["height"], image["width"]
    if height is None or width is None:
        raise ShardError(f"{place}: the JSON does not say the size of the image")
    rle = segmentation_to_rle(annotation.get("segmentation"), height=height, width=width, counts=report.counts, place=place)
    if rle is None:
        raise ShardError(f"{place}: the mask has no pixels")
    defaults = {
        "id": index + 1,
        "bbox": rle_to_box_xywh(rle),
        "area": rle_area(rle),
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, float(width), float(height)],
        "point_coords": [],
    }
    known = {name: annotation[name] for name in (*MASK_KEYS, "provenance") if annotation.get(name) is not None}
    report.counts.update(["record_completed"] if defaults.keys() - known.keys() - {"id"} else [])
    report.counts.update(["key_dropped"] if annotation.keys() - {*MASK_KEYS, "provenance"} else [])
    mask_id, area = as_integer(known.get("id")), as_integer(known.get("area"))
    known |= {"id": index + 1 if mask_id is None else mask_id, "area": defaults["area"] if area is None else area}
    return {**defaults, **known, "segmentation": rle}
