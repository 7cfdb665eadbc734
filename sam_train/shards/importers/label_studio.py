"""Import of Label Studio's JSON: polygons, brush masks, rectangles and ellipses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.brush_rle import decode_brush
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import ImageFolder
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import check_declared_size, importer
from sam_train.shards.importers.json_values import as_integer, read_json
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.segmentations import points_array
from sam_train.shards.importers.shapes import ellipse_points, union_to_rle

_WITH_AREA = ("polygonlabels", "brushlabels", "ellipselabels", "polygon", "brush", "ellipse")
_BOXES = ("rectanglelabels", "rectangle")


@importer(default_frame="upright")
def import_label_studio(
    images: Path,
    annotations: Path,
    *,
    regions: Literal["annotations", "predictions"] = "annotations",
    report: ImportReport,
) -> list[ImageItem]:
    """Import a JSON export of Label Studio (not JSON-MIN), in the order of file names.

    Polygons, brush masks and ellipses of the first annotation of each task that was not cancelled are imported; others are
    counted as "further_annotation". The image of a task is the file in --images that its URL names, also without the eight
    characters and the dash that an upload puts before the name. A pixel belongs to a polygon if its centre is inside. The first
    label of a region becomes its name; ids are the places of the regions, from 1. Rectangles are counted as
    "box_without_polygon", key points and other results without an area as "shape_without_area".

    Args:
        images: Folder of the images.
        annotations: JSON export, a list of tasks.
        regions: Part of the tasks to import, the annotations of people or the predictions of a model.

    Raises:
        ShardError: Names the task and the region, for a JSON that is not Label Studio's, an image that is missing or of another
            size, a rotated image, and regions that do not fit their image.
    """
    tasks = read_json(annotations)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
        raise ShardError(f"{annotations} is not Label Studio's JSON: expected a list of tasks with 'data'")
    folder, items = ImageFolder(images), []
    names = {name for task in tasks for region in _results(task, regions) for name in _labels(region)}
    report.categories.update(enumerate(sorted(names), start=1))
    for index, task in enumerate(tasks):
        place = f"{annotations}, task {index}"
        with report.entry("image", place):
            name = _image_name(task, folder, place)
            results = _results(task, regions)
            others = len([part for part in task.get(regions) or [] if isinstance(part, dict)]) - 1
            report.counts.update({"further_annotation": others} if others > 0 else {})
            masks = partial(_masks, results, f"{place} ({name})", report)
            items.append(
                ImageItem(name=name, file=DiskFile(folder.find(name)), masks=masks, declared_size=partial(_size, results))
            )
    return sorted(items, key=lambda item: item.name)


def _results(task: dict[str, Any], regions: str) -> list[Any]:
    parts = [part for part in task.get(regions) or [] if isinstance(part, dict)]
    kept = next((part for part in parts if not part.get("was_cancelled")), {})
    results = kept.get("result")
    return results if isinstance(results, list) else []


def _image_name(task: dict[str, Any], folder: ImageFolder, place: str) -> str:
    data = task["data"]
    url = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if not isinstance(url, str) or not url:
        raise ShardError(f"{place}: expected the URL of an image in 'data', got {str(data)[:80]}")
    try:
        parts = urlsplit(url.replace("\\", "/"))
    except ValueError as error:
        raise ShardError(f"{place}: {url[:200]!r} is not a URL: {error}") from error
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0].replace("\\", "/")
    components = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    ends = ["/".join(components[start:]) for start in range(len(components))]
    ends += [name for name in [task.get("file_upload")] if isinstance(name, str) and name and "/" not in name and name != ".."]
    ends += [end[9:] for end in ends if end[8:9] == "-" and "/" not in end]
    if not ends:
        raise ShardError(f"{place}: {url[:200]!r} names no file")
    return next((end for end in ends if folder.find(end).is_file()), PurePosixPath(path).name)


def _size(results: list[Any]) -> tuple[int, int] | None:
    for region in results:
        if isinstance(region, dict):
            width, height = as_integer(region.get("original_width")), as_integer(region.get("original_height"))
            if width is not None and height is not None:
                return width, height
    return None


def _labels(region: Any) -> list[str]:
    value = region.get("value") if isinstance(region, dict) else None
    labels = value.get(region.get("type")) if isinstance(value, dict) else None
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _masks(results: list[Any], place: str, report: ImportReport, height: int, width: int) -> Iterator[MaskRecord]:
    if (size := _size(results)) is not None:
        check_declared_size(place, size, height=height, width=width)
    for index, region in enumerate(results, start=1):
        where, record = f"{place}, region {index}", None
        with report.entry("annotation", where):
            record = _record(region, index, where, report, height, width)
        if record is not None:
            yield record


def _record(region: Any, index: int, place: str, report: ImportReport, height: int, width: int) -> MaskRecord | None:
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(region, dict) or not isinstance(value, dict):
        raise ShardError(f"{place}: expected an object with 'value', got {str(region)[:80]}")
    kind = region.get("type")
    if kind not in _WITH_AREA:
        report.counts["box_without_polygon" if kind in _BOXES else "shape_without_area"] += 1
        return None
    if region.get("image_rotation"):
        raise ShardError(f"{place}: the image was turned by {region['image_rotation']} degrees in Label Studio: turn the file")
    polygons, masks = [], []
    if "rle" in value:
        masks = [_brush(value["rle"], place, height, width)]
    elif "points" in value:
        polygons = [points_array(value["points"], place=place) / 100 * [width, height]]
    else:
        try:
            x, y, radius_x, radius_y = (float(value[name]) / 100 for name in ("x", "y", "radiusX", "radiusY"))
            degrees = float(value.get("rotation") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{place}: expected points, an RLE or an ellipse, got {str(value)[:80]}") from error
        polygons = [ellipse_points(x * width, y * height, radius_x * width, radius_y * height, degrees=degrees)]
    rle = union_to_rle(polygons, masks, height=height, width=width, counts=report.counts, place=place)
    if rle is None:
        report.counts["mask_without_pixels"] += 1
        return None
    name = parse_class_name(next(iter(_labels(region)), ""), place=place)
    return mask_record_from_rle(rle, mask_id=index, annotator="label_studio", name=name)


def _brush(values: object, place: str, height: int, width: int) -> np.ndarray:
    if not isinstance(values, list) or not all(type(number) is int and 0 <= number < 256 for number in values):
        raise ShardError(f"{place}: expected a list of bytes as 'rle', got {str(values)[:80]}")
    try:
        return decode_brush(bytes(values), height=height, width=width)
    except ValueError as error:
        raise ShardError(f"{place}: the brush does not decode: {error}") from error
