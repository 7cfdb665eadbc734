"""Import of panoptic maps: all segments of an image in one PNG, as in COCO panoptic, ADE20K and Cityscapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import parse_category_names
from sam_train.shards.importers.file_pairing import PairedFolders, checked_relative_path
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.json_values import flag, integer_field, read_json_object
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_files import MASK_EXTENSIONS, drop_ignored, label_file_size, read_colours, read_label_map
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.importers.report import ImportReport

_CITYSCAPES_FIRST_INSTANCE = 1000
_CITYSCAPES_MAX_VOID = 3
"""Highest class number that is not part of the scene: 0 unlabeled, 1 ego vehicle, 2 rectification border, 3 out of roi."""
_CITYSCAPES_CLASSES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk"),
    *("parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"),
    *("traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan"),
    *("trailer", "train", "motorcycle", "bicycle"),
)
"""Class names by number (cityscapesScripts, helpers/labels.py)."""


class _Segment(NamedTuple):
    kind: str
    """One of thing, stuff and crowd."""
    name: str


@importer(default_frame="upright")
def import_panoptic(
    images: Path,
    labels: Path,
    *,
    segments: Path | None = None,
    ignore: tuple[int, ...] = (),
    image_suffix: str = "",
    label_suffix: str = "",
    image_extension: str = "",
    keep_stuff: bool = False,
    drop_crowd: bool = False,
    min_area: int = 1,
    report: ImportReport,
) -> list[ImageItem]:
    """Import pairs of an image and a panoptic map, images/STEM.* and labels/STEM.png, in the order of names.

    The kind of file decides its meaning. RGB: id = R + 256 G + 65536 B, 0 is void (COCO, and ADE20K's _seg.png, where each
    colour is one object). 16-bit gray: Cityscapes' instanceIds, class * 1000 + number; values below 1000 are stuff or groups,
    and 0 to 3 are void. The id of a segment becomes the id of its mask. --segments is COCO's panoptic JSON, which says for each
    id whether it is a crowd, whether its category is a thing or stuff, and the name of the category; the names of Cityscapes'
    classes are built in. The class names of ADE20K's _seg.png are in no file beside it: convert it to COCO's format to import
    names. ADE20K has images and labels in one folder: --label-suffix _seg --image-extension .jpg.

    Dropped and counted: "stuff", according to the JSON or Cityscapes' values, unless --keep-stuff is given.

    Args:
        images: Folder of the images.
        labels: Folder of the panoptic maps; it may be that of the images if --label-suffix tells them apart.
        segments: COCO's panoptic JSON.
        keep_stuff: Import stuff segments as masks as well.

    Raises:
        ShardError: Names the file, for an image without a map or the reverse, a pair of different sizes, another kind of file,
            an invalid JSON, and ids that the JSON does not list.
    """
    segments_by_file = None if segments is None else _read_segments(segments, report)
    suffixes = {"image_suffix": image_suffix, "label_suffix": label_suffix, "image_extension": image_extension}
    folders = PairedFolders(images, labels, what="panoptic map", extensions=MASK_EXTENSIONS, **suffixes)

    def read(label: Path, height: int, width: int) -> list[MaskRecord]:
        ids, is_cityscapes = read_panoptic_map(label)
        check_matches_image_size(label, ids, height=height, width=width)
        ids = drop_ignored(ids, label, ignore, report.counts)
        name_of: Callable[[int], str] | None = None
        if segments_by_file is not None:
            name = label.relative_to(labels).as_posix()
            name_of = _drop_by_json(ids, segments_by_file, name, keep_stuff, drop_crowd, report.counts)
        elif is_cityscapes:
            name_of = _drop_cityscapes_stuff(ids, keep_stuff, report.counts)
        return mask_records_from_id_map(ids, annotator="panoptic", min_area=min_area, counts=report.counts, name_of=name_of)

    return [
        ImageItem(name=name, file=DiskFile(image), masks=partial(read, label), declared_size=partial(label_file_size, label))
        for name, image, label in folders.pairs(report)
    ]


def read_panoptic_map(path: Path) -> tuple[np.ndarray, bool]:
    """Read a panoptic map: H x W uint32 ids, and whether it is Cityscapes' format, 16-bit gray.

    Raises ShardError, naming the file, for any other file.
    """
    try:
        return read_colours(path).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32), False
    except ShardError as error:
        values = read_label_map(path)
        if values.dtype.itemsize == 1:
            expected = "a panoptic map is RGB, or 16-bit gray as Cityscapes' instanceIds"
            raise ShardError(f"{path} has 8-bit gray values: {expected}; see also kind label_maps") from error
        return values.astype(np.uint32), True


def _drop_cityscapes_stuff(ids: np.ndarray, keep_stuff: bool, counts: Counter[str]) -> Callable[[int], str]:
    """Set dropped segments to 0 in `ids`; return the function from id to class name."""
    ids[ids <= _CITYSCAPES_MAX_VOID] = 0
    if not keep_stuff:
        stuff = (ids > 0) & (ids < _CITYSCAPES_FIRST_INSTANCE)
        counts.update("stuff" for _ in np.unique(ids[stuff]))
        ids[stuff] = 0
    return _cityscapes_name


def _cityscapes_name(segment: int) -> str:
    number = segment if segment < _CITYSCAPES_FIRST_INSTANCE else segment // _CITYSCAPES_FIRST_INSTANCE
    return _CITYSCAPES_CLASSES[number] if number < len(_CITYSCAPES_CLASSES) else ""


def _drop_by_json(
    ids: np.ndarray,
    segments_by_file: dict[str, dict[int, _Segment]],
    name: str,
    keep_stuff: bool,
    drop_crowd: bool,
    counts: Counter[str],
) -> Callable[[int], str]:
    """Set dropped segments to 0 in `ids`; return the function from id to class name."""
    if name not in segments_by_file:
        raise ShardError(f"the segments JSON does not list {name}: it belongs to other images")
    segments = segments_by_file[name]
    for segment in np.unique(ids[ids > 0]):
        if int(segment) not in segments:
            raise ShardError(f"{name} has the id {segment}, which the segments JSON does not list for it")
        kind = segments[int(segment)].kind
        if (kind == "crowd" and drop_crowd) or (kind == "stuff" and not keep_stuff):
            counts[kind] += 1
            ids[ids == segment] = 0
    return lambda segment: segments[segment].name


def _read_segments(path: Path, report: ImportReport) -> dict[str, dict[int, _Segment]]:
    """Return the segments by PNG file name and id."""
    document = read_json_object(path, ("annotations", "categories"))
    names = parse_category_names(document["categories"], place=str(path))
    report.categories.update(names)
    stuff = {
        integer_field(entry, "id", place=f"{path}, categories") for entry in document["categories"] if not entry.get("isthing", 1)
    }
    segments_by_file: dict[str, dict[int, _Segment]] = {}
    for index, annotation in enumerate(document["annotations"]):
        place = f"{path}, annotations[{index}]"
        segments_by_file[checked_relative_path(annotation.get("file_name"), place=place)] = segments_by_id = {}
        segments = annotation.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            raise ShardError(f"{place}: expected 'segments_info', a list of objects")
        for segment in segments:
            category = integer_field(segment, "category_id", place=place)
            if category not in names:
                raise ShardError(f"{place}: category {category} is not in the JSON's 'categories'")
            kind = "crowd" if flag(segment.get("iscrowd"), place=place) else "stuff" if category in stuff else "thing"
            segments_by_id[integer_field(segment, "id", place=place)] = _Segment(kind, names[category])
    return segments_by_file
