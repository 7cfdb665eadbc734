"""Import of CVAT's XML ("CVAT for images 1.1"): polygons, RLE masks, boxes and ellipses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import ImageFolder, checked_relative_path
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import check_declared_size, importer
from sam_train.shards.importers.json_values import as_integer
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.shapes import ellipse_points, paste, rectangle_points, union_to_rle
from sam_train.shards.importers.xml_files import read_xml

_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


@importer(default_frame="upright")
def import_cvat(images: Path, annotations: Path, *, boxes: bool = False, report: ImportReport) -> list[ImageItem]:
    """Import an annotations.xml of "CVAT for images 1.1", in the order of file names.

    Polygons, masks and ellipses are imported; shapes of one label and one group_id (other than 0) become one mask. A pixel
    belongs to a polygon if its centre is inside. Labels become names, numbered in the order of the XML; ids are the places of
    the shapes in their image, from 1. Boxes are counted as "box_without_polygon" unless --boxes is given; polylines, points,
    cuboids, skeletons and tags are counted as "shape_without_area".

    Args:
        images: Folder to which the names of the images in the XML are relative.
        annotations: annotations.xml.
        boxes: Import boxes as masks as well.

    Raises:
        ShardError: Names the file and the shape, for an XML that is not CVAT's for images, an image that is missing or of another
            size, and shapes that do not fit their image.
    """
    root = read_xml(annotations)
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        hint = "tracks of 'CVAT for video': export it as 'CVAT for images 1.1'" if root.find("track") is not None else "no images"
        raise ShardError(f"{annotations} has {hint}; expected <annotations> with <image> entries")
    listed = [label.findtext("name") or "" for label in root.iterfind("meta//labels/label")]
    used = sorted({shape.get("label") or "" for entry in entries for shape in entry})
    names = list(dict.fromkeys([*listed, *used]))
    report.categories.update({n: parse_class_name(name, place=str(annotations)) for n, name in enumerate(names, start=1)})
    folder, items = ImageFolder(images), []
    for index, entry in enumerate(entries):
        place = f"{annotations}, image {index}"
        with report.entry("image", place):
            name = folder.relative_name(entry.get("name"), report, place=place)
            in_subset = f"{entry.get('subset')}/{name}"  # as a project with several subsets is exported
            if entry.get("subset") and folder.find(checked_relative_path(in_subset, place=place)).is_file():
                name = in_subset
            size = as_integer(entry.get("width")), as_integer(entry.get("height"))
            if size[0] is None or size[1] is None:
                raise ShardError(f"{place}: expected 'width' and 'height', integers")
            declared = (size[0], size[1])
            masks = partial(_masks, entry, declared, f"{annotations}, {name}", boxes, report)
            item = ImageItem(name=name, file=DiskFile(folder.find(name)), masks=masks, declared_size=partial(_same, declared))
            items.append(item)
    return sorted(items, key=lambda item: item.name)


def _same(size: tuple[int, int]) -> tuple[int, int]:
    return size


def _masks(
    image: ElementTree.Element,
    size: tuple[int, int],
    place: str,
    boxes: bool,
    report: ImportReport,
    height: int,
    width: int,
) -> Iterator[MaskRecord]:
    check_declared_size(place, size, height=height, width=width)
    groups: dict[object, list[tuple[int, str, np.ndarray | None, np.ndarray | None]]] = {}
    for index, shape in enumerate(image, start=1):
        where = f"{place}, shape {index} ({shape.tag})"
        with report.entry("annotation", where):
            if shape.tag in _WITHOUT_AREA:
                report.counts["shape_without_area"] += 1
                continue
            if shape.tag == "box" and not boxes:
                report.counts["box_without_polygon"] += 1
                continue
            name = parse_class_name(shape.get("label") or "", place=where)
            polygon, mask = _geometry(shape, height, width, where)
            group = shape.get("group_id") or "0"
            groups.setdefault(index if group == "0" else (name, group), []).append((index, name, polygon, mask))
    for parts in groups.values():
        index, name, *_ = parts[0]
        where = f"{place}, shape {index}"
        with report.entry("annotation", where):
            polygons, masks = [p for *_, p, _ in parts if p is not None], [m for *_, m in parts if m is not None]
            rle = union_to_rle(polygons, masks, height=height, width=width, counts=report.counts, place=where)
            if rle is None:
                report.counts["mask_without_pixels"] += 1
            else:
                yield mask_record_from_rle(rle, mask_id=index, annotator="cvat", name=name)


def _geometry(shape: ElementTree.Element, height: int, width: int, place: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the polygon of a shape (P x 2), or its mask (H x W bool)."""
    values = shape.attrib
    if shape.tag == "polygon":
        return _points(values.get("points", ""), place), None
    if shape.tag == "box":
        sides = _numbers(values, ("xtl", "ytl", "xbr", "ybr"), place)
        return rectangle_points(*sides, degrees=_numbers(values, ("rotation",), place)[0]), None
    if shape.tag == "ellipse":
        sides = _numbers(values, ("cx", "cy", "rx", "ry"), place)
        return ellipse_points(*sides, degrees=_numbers(values, ("rotation",), place)[0]), None
    if shape.tag != "mask":
        raise ShardError(f"{place}: expected a polygon, mask, box or ellipse")
    left, top, columns, rows = (round(number) for number in _numbers(values, ("left", "top", "width", "height"), place))
    part = _runs_to_mask(values.get("rle", ""), rows, columns, place)
    return None, paste(part, left, top, height=height, width=width, place=place)


def _runs_to_mask(text: str, rows: int, columns: int, place: str) -> np.ndarray:
    """Decode CVAT's runs: lengths row by row within the box, the first of background."""
    runs = np.array([number for number in map(as_integer, text.split(",")) if number is not None], np.int64)
    if len(runs) != len(text.split(",")) or (runs < 0).any() or int(runs.sum()) != rows * columns:
        problem = f"{int(runs.sum())} pixels in {len(runs)} runs"
        raise ShardError(f"{place}: the RLE has {problem}, expected the {rows * columns} of its box {columns} x {rows}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(rows, columns)


def _points(text: str, place: str) -> np.ndarray:
    try:
        return np.array([pair.split(",") for pair in text.split(";") if pair.strip()], np.float64).reshape(-1, 2)
    except ValueError as error:
        raise ShardError(f"{place}: expected points 'x,y;x,y;...', got {text[:80]!r}") from error


def _numbers(values: Mapping[str, str], names: tuple[str, ...], place: str) -> list[float]:
    try:
        return [float(values.get(name, "0" if name == "rotation" else "")) for name in names]
    except ValueError as error:
        raise ShardError(f"{place}: expected numbers as {', '.join(names)}: {error}") from error
