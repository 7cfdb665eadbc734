"""Import of the JSON files of labelme and X-AnyLabeling, one per image."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.image_io import IMAGE_EXTENSIONS, open_image_header
from sam_train.shards.importers.file_pairing import ImageFolder, files_by_stem
from sam_train.shards.importers.image_items import DiskFile, ImageItem, MemoryFile
from sam_train.shards.importers.importer import check_declared_size, importer
from sam_train.shards.importers.json_values import as_integer, read_json
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.segmentations import points_array
from sam_train.shards.importers.shapes import ellipse_points, paste, rectangle_points, union_to_rle

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_NOT_OBJECTS = ("__ignore__", "_background_")
"""Labels that labelme's converters do not treat as objects."""
_POLYGONS = ("polygon", "rotation", "quadrilateral", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    index: int
    name: str
    group: object
    polygon: np.ndarray | None
    mask: np.ndarray | None


@importer(default_frame="upright")
def import_labelme(images: Path, labels: Path | None = None, *, report: ImportReport) -> list[ImageItem]:
    """Import the JSON files of labelme or X-AnyLabeling, one per image, in the order of names.

    The image of a JSON is the one that `imagePath` names, beside the JSON or in --images; if it does not exist, the image inside
    the JSON (`imageData`). Polygons, rectangles, rotated rectangles, circles and masks are imported; shapes of one label and one
    group_id become one mask. A pixel belongs to a polygon if its centre is inside. Labels become names; ids are the places of
    the shapes in the file, from 1. Points and lines are dropped and counted as "shape_without_area",
    shapes labelled __ignore__ or _background_ as "ignored_label".

    Args:
        images: Folder of the images, and of the JSON files without --labels.
        labels: Folder of the JSON files.

    Raises:
        ShardError: Names the file and the shape, for a JSON that is not labelme's, an image that is missing or of another size,
            and shapes that do not fit their image.
    """
    folder, documents = labels or images, {}
    for stem, path in files_by_stem(folder, (".json",), report=report).items():
        with report.entry("image", str(path)):
            document = read_json(path)
            if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
                raise ShardError(f"{path} is not labelme's: expected an object with 'shapes', a list")
            documents[stem] = (path, document)
    if not documents:
        raise ShardError(f"no JSON files of labelme in {folder}")
    names = {str(s.get("label")) for _, document in documents.values() for s in document["shapes"] if isinstance(s, dict)}
    report.categories.update(enumerate(sorted(names - {*_NOT_OBJECTS}), start=1))
    searched = ImageFolder(images)
    items = []
    for stem, (path, document) in documents.items():
        with report.entry("image", str(path)):
            items.append(_item(stem, path, document, searched, report))
    return items


def _item(stem: str, path: Path, document: dict[str, Any], images: ImageFolder, report: ImportReport) -> ImageItem:
    image_path = document.get("imagePath")
    base = PureWindowsPath(image_path).name if isinstance(image_path, str) else ""
    if not base:
        raise ShardError(f"{path}: expected a file name as 'imagePath', got {str(image_path)[:80]!r}")
    if PurePosixPath(base).suffix.lower() not in IMAGE_EXTENSIONS:  # some versions wrote the name of the JSON
        report.counts["file_name_normalised"] += 1
        stems = (PurePosixPath(stem).with_name(f"{PurePosixPath(base).stem}{ending}") for ending in IMAGE_EXTENSIONS)
        base = next((path.name for path in stems if images.find(path.as_posix()).is_file()), f"{PurePosixPath(base).stem}.jpg")
    beside = (PurePosixPath(stem).parent / base).as_posix()
    name = next((name for name in (beside, base) if images.find(name).is_file()), beside)
    file: DiskFile | MemoryFile = DiskFile(images.find(name))
    if not file.exists() and document.get("imageData"):
        file = MemoryFile(_decode_base64(document["imageData"], f"{path}, imageData"), str(path))
        report.counts["image_from_json"] += 1
    sides = as_integer(document.get("imageWidth")), as_integer(document.get("imageHeight"))
    size = (sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
    return ImageItem(
        name=name,
        file=file,
        masks=partial(_masks, path, document["shapes"], size, report),
        declared_size=lambda: size,
    )


def _masks(
    path: Path, shapes: list[Any], size: tuple[int, int] | None, report: ImportReport, height: int, width: int
) -> Iterator[MaskRecord]:
    if size is not None:
        check_declared_size(f"the image of {path}", size, height=height, width=width)
    groups: dict[object, list[_Shape]] = {}
    for index, shape in enumerate(shapes, start=1):
        place = f"{path}, shapes[{index - 1}]"
        with report.entry("annotation", place):
            if isinstance(shape, dict) and shape.get("label") in _NOT_OBJECTS:
                report.counts["ignored_label"] += 1
                continue
            parsed = _shape(shape, index, height, width, place)
            if parsed is None:
                report.counts["shape_without_area"] += 1
            else:
                key = index if parsed.group is None else (parsed.name, str(parsed.group))
                groups.setdefault(key, []).append(parsed)
    for parts in groups.values():
        first, place = parts[0], f"{path}, shapes[{parts[0].index - 1}]"
        with report.entry("annotation", place):
            polygons = [part.polygon for part in parts if part.polygon is not None]
            masks = [part.mask for part in parts if part.mask is not None]
            rle = union_to_rle(polygons, masks, height=height, width=width, counts=report.counts, place=place)
            if rle is None:
                report.counts["mask_without_pixels"] += 1
            else:
                yield mask_record_from_rle(rle, mask_id=first.index, annotator="labelme", name=first.name)


def _shape(shape: Any, index: int, height: int, width: int, place: str) -> _Shape | None:
    """Return a shape, None for one without an area."""
    if not isinstance(shape, dict):
        raise ShardError(f"{place}: expected an object, got {str(shape)[:80]}")
    kind = shape.get("shape_type") or ""
    if kind in _WITHOUT_AREA:
        return None
    name = parse_class_name(str(shape.get("label") or ""), place=place)
    points = points_array(shape.get("points"), place=place)
    polygon, mask = None, None
    if kind == "mask":
        mask = _mask(shape.get("mask"), points, height, width, place)
    elif kind in _POLYGONS or (kind == "rectangle" and len(points) == 4):
        polygon = points
    elif kind in ("rectangle", "circle") and len(points) == 2:
        (x, y), (other_x, other_y) = points.tolist()
        radius = float(np.hypot(other_x - x, other_y - y))
        polygon = rectangle_points(x, y, other_x, other_y) if kind == "rectangle" else ellipse_points(x, y, radius, radius)
    else:
        expected = "expected polygon, rectangle, circle or mask"
        raise ShardError(f"{place}: a shape {str(kind)[:40]!r} of {len(points)} points: {expected}")
    return _Shape(index=index, name=name, group=shape.get("group_id"), polygon=polygon, mask=mask)


def _mask(encoded: object, points: np.ndarray, height: int, width: int, place: str) -> np.ndarray:
    """Return the mask of a shape "mask": a PNG of its box, whose corners are the first and the last pixel."""
    if len(points) != 2:
        raise ShardError(f"{place}: expected the two corners of the mask's box, got {len(points)} points")
    try:
        image: Image.Image = open_image_header(_decode_base64(encoded, place), name=place, min_side=1)
        values = np.asarray(image.convert("L") if image.mode not in ("1", "L", "P") else image)
    except (SkipSampleError, OSError, ValueError) as error:
        raise ShardError(f"{place}: the mask does not decode: {error}") from error
    (left, top), (right, bottom) = np.rint(points).astype(int).tolist()
    if values.shape != (bottom - top + 1, right - left + 1):
        box = f"its box of {right - left + 1} x {bottom - top + 1}"
        raise ShardError(f"{place}: the mask has {values.shape[1]} x {values.shape[0]} pixels, {box}: they must agree")
    return paste(values > 0, left, top, height=height, width=width, place=place)


def _decode_base64(text: object, place: str) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ShardError(f"{place}: expected base64, got {str(text)[:40]!r}: {error}") from error
