"""Panoptic maps: every segment of a picture in one PNG, as COCO panoptic, ADE20K and Cityscapes have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.class_names import parse_category_names
from sam_train.shards.importers.file_pairing import checked_relative_path, load_image_or_raise, pairs_by_stem
from sam_train.shards.importers.instances_json import integer_field, read_json_object
from sam_train.shards.importers.label_maps import check_matches_image_size, read_png
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.keys import image_id_from_path, keys_from_paths

_CITYSCAPES_FIRST_INSTANCE = 1000
_CITYSCAPES_NOT_IN_THE_SCENE = 3
"""0 unlabeled, 1 ego vehicle, 2 rectification border, 3 out of roi."""
_CITYSCAPES_CLASSES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk"),
    *("parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup"),
    *("traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan"),
    *("trailer", "train", "motorcycle", "bicycle"),
)
"""By number, as cityscapesScripts' helpers/labels.py has them."""


class _Segment(NamedTuple):
    kind: str
    """thing, stuff or crowd."""
    name: str


def import_panoptic(
    images: Path,
    labels: Path,
    *,
    segments: Path | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    keep_stuff: bool = False,
    min_area: int = 1,
    counts: Counter[str] | None = None,
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Pairs `images/STEM{image_suffix}.*` and `labels/STEM{label_suffix}.png` to records and JPEG bytes, in name order.

    The PNG's form says what it means. RGB: id = R + 256 G + 65536 B, 0 is nothing (COCO, and ADE20K's _seg.png, where a
    colour is an object too). 16 bits gray: Cityscapes' instanceIds, class * 1000 + number; values below 1000 are stuff, and
    groups not told apart, and 0 to 3 no part of the scene. The id becomes the mask's. `segments` is COCO's panoptic JSON,
    which knows of an id whether it is a crowd (never taken), whether its category is a thing, and what that is called; of
    Cityscapes' classes the names are known. ADE20K's _seg.png names its classes in no file that stands beside it: convert it to
    COCO's form for names.

    Left out and counted: "stuff", known from that JSON or Cityscapes' values, unless --keep-stuff; "crowd"; "below_min_area".

    Raises ShardError, naming the file, for a picture without map or the reverse, a pair of two sizes (the picture seen
    upright), another kind of PNG, a JSON of another form, and ids that the JSON does not list.
    """
    counts = Counter() if counts is None else counts
    known = None if segments is None else _read_segments(segments)
    pairs = pairs_by_stem(images, labels, ".png", what="panoptic map", image_suffix=image_suffix, label_suffix=label_suffix)
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (name, image, label) in zip(keys, pairs, strict=True):
        picture = load_image_or_raise(image, key=key)
        height, width = picture.image.shape[:2]
        ids, is_cityscapes = read_panoptic_map(label)
        check_matches_image_size(label, ids, height=height, width=width, key=key)
        name_of: Callable[[int], str] | None = None
        if known is not None:
            name_of = _leave_out_by_json(ids, known, label.relative_to(labels).as_posix(), keep_stuff, counts)
        elif is_cityscapes:
            name_of = _leave_out_by_value(ids, keep_stuff, counts)
        masks = mask_records_from_id_map(ids, annotator="panoptic", min_area=min_area, counts=counts, name_of=name_of)
        yield ImageRecord(key=key, image_id=image_id_from_path(name), width=width, height=height, masks=masks), picture.jpeg


def read_panoptic_map(path: Path) -> tuple[np.ndarray, bool]:
    """A PNG to H x W uint32 ids, and whether it is 16 bit gray, Cityscapes' form. Raises ShardError, naming the file."""
    expected = "a panoptic map is an RGB PNG, or 16 bit gray as Cityscapes' instanceIds; see also the kind label_maps"
    values = read_png(path, ("RGB", "I;16"), expected=expected)
    if values.ndim == 2:
        return values.astype(np.uint32), True
    return values.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32), False


def _leave_out_by_value(ids: np.ndarray, keep_stuff: bool, counts: Counter[str]) -> Callable[[int], str]:
    """Names by id."""
    ids[ids <= _CITYSCAPES_NOT_IN_THE_SCENE] = 0
    if not keep_stuff:
        stuff = (ids > 0) & (ids < _CITYSCAPES_FIRST_INSTANCE)
        counts.update("stuff" for _ in np.unique(ids[stuff]))
        ids[stuff] = 0
    return _cityscapes_name


def _cityscapes_name(segment: int) -> str:
    number = segment if segment < _CITYSCAPES_FIRST_INSTANCE else segment // _CITYSCAPES_FIRST_INSTANCE
    return _CITYSCAPES_CLASSES[number] if number < len(_CITYSCAPES_CLASSES) else ""


def _leave_out_by_json(
    ids: np.ndarray, known: dict[str, dict[int, _Segment]], name: str, keep_stuff: bool, counts: Counter[str]
) -> Callable[[int], str]:
    """Names by id."""
    if name not in known:
        raise ShardError(f"the segments JSON does not list {name}: it is of other pictures")
    segments = known[name]
    for segment in np.unique(ids[ids > 0]):
        if int(segment) not in segments:
            raise ShardError(f"{name} holds the id {segment}, which the segments JSON does not list for it")
        kind = segments[int(segment)].kind
        if kind == "crowd" or (kind == "stuff" and not keep_stuff):
            counts[kind] += 1
            ids[ids == segment] = 0
    return lambda segment: segments[segment].name


def _read_segments(path: Path) -> dict[str, dict[int, _Segment]]:
    """PNG's name -> id -> what stands there."""
    document = read_json_object(path, ("annotations", "categories"))
    names = parse_category_names(document["categories"], place=str(path))
    stuff = {
        integer_field(entry, "id", place=f"{path}, categories") for entry in document["categories"] if not entry.get("isthing", 1)
    }
    found: dict[str, dict[int, _Segment]] = {}
    for index, annotation in enumerate(document["annotations"]):
        place = f"{path}, annotations[{index}]"
        found[checked_relative_path(annotation.get("file_name"), place=place)] = of_ids = {}
        segments = annotation.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            raise ShardError(f"{place}: expected 'segments_info', a list of objects")
        for segment in segments:
            category = integer_field(segment, "category_id", place=place)
            if category not in names:
                raise ShardError(f"{place}: category {category} is none of the JSON's 'categories'")
            kind = "crowd" if segment.get("iscrowd") else "stuff" if category in stuff else "thing"
            of_ids[integer_field(segment, "id", place=place)] = _Segment(kind, names[category])
    return found
