"""Reading of COCO's instances JSON and related formats, and conversion to records, one image at a time.

The JSON of the full LVIS has a gigabyte, which becomes ten as Python objects. So the file is memory-mapped, entries are kept as
raw bytes (msgspec's Raw), and only those of one image at a time are decoded.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Rle
from sam_train.shards.class_names import parse_category_names
from sam_train.shards.importers.file_pairing import decode_annotated_image
from sam_train.shards.importers.mask_records import mask_record_from_rle, parse_rle
from sam_train.shards.importers.polygons import polygons_to_rle
from sam_train.shards.keys import keys_from_paths

MAX_IMAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One entry of `images` and its annotations, undecoded, in the order of the JSON."""

    name: str
    image_id: int
    width: int
    height: int
    raw_annotations: list[msgspec.Raw]

    def annotations(self) -> list[dict[str, Any]]:
        """Decode the annotations, anew at each call. Raises ShardError, naming the image, if one is not a JSON object."""
        return [_object(raw, place=f"{self.name}, annotation {index}") for index, raw in enumerate(self.raw_annotations)]


class _Document(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


class _ImageReference(msgspec.Struct, gc=False):
    """The part of an annotation that names its image."""

    image_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


_DOCUMENT_DECODER = msgspec.json.Decoder(_Document)
_IMAGE_REFERENCE_DECODER = msgspec.json.Decoder(_ImageReference)


def read_json_object(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object in which the keys `lists` hold lists of objects. Raises ShardError, naming the file, if it is not."""
    if not path.is_file():
        raise ShardError(f"no such file: {path}")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path} is not JSON: {error}") from error
    for name in lists:
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ShardError(f"{path}: expected an object with {' and '.join(map(repr, lists))}, lists of objects")
    return document


def integer_field(entry: dict[str, Any], name: str, *, place: str) -> int:
    """Return the integer `entry[name]`. Raises ShardError, naming `place`, if it is not an integer."""
    value = entry.get(name)
    if type(value) is not int:
        raise ShardError(f"{place}: expected an integer as {name!r}, got {str(value)[:80]}")
    return value


def read_instances(path: Path, name_of: Callable[[dict[str, Any], str], str]) -> tuple[list[AnnotatedImage], dict[int, str]]:
    """Read an instances JSON: its images in the order of names, and the names of its categories by id.

    `name_of(image, place)` returns the file name of an entry of `images`. A JSON without categories has no names.
    Raises ShardError, naming the file and the entry, for an invalid JSON, a duplicate image id and an annotation of no image.
    """
    document = _read_document(path)
    categories = parse_category_names(_value(document.categories, place=f"{path}, categories"), place=str(path))
    image_ids = np.fromiter(_annotation_image_ids(document, path), np.int64, len(document.annotations))
    order = np.argsort(image_ids, kind="stable")
    unique_ids, starts = np.unique(image_ids[order], return_index=True)
    ends = [*starts[1:].tolist(), len(image_ids)]
    bounds = zip(unique_ids.tolist(), starts.tolist(), ends, strict=False)
    annotations_by_image = {number: order[start:end] for number, start, end in bounds}
    images, used_ids = [], set()
    for index, raw in enumerate(document.images):
        place = f"{path}, images[{index}]"
        image = _object(raw, place=place)
        image_id = integer_field(image, "id", place=place)
        if image_id in used_ids:
            raise ShardError(f"{place}: the id {image_id} is a duplicate: every image needs its own")
        used_ids.add(image_id)
        width, height = (integer_field(image, side, place=place) for side in ("width", "height"))
        raw_annotations = [document.annotations[number] for number in annotations_by_image.pop(image_id, ())]
        name = name_of(image, place)
        images.append(AnnotatedImage(name=name, image_id=image_id, width=width, height=height, raw_annotations=raw_annotations))
    if annotations_by_image:
        example = next(iter(annotations_by_image))
        raise ShardError(f"{path}: annotations name {len(annotations_by_image)} image ids that no image has, such as {example}")
    if not images:
        raise ShardError(f"{path}: no images: expected COCO's instances JSON")
    return sorted(images, key=lambda image: image.name), categories


def _read_document(path: Path) -> _Document:
    try:
        with path.open("rb") as stream:
            return _DOCUMENT_DECODER.decode(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        # Python's parser accepts more (NaN, a byte order mark) and reports errors better, but needs more memory.
        document = read_json_object(path, ("images", "annotations"))
    raw = {name: [msgspec.Raw(json.dumps(entry).encode()) for entry in document[name]] for name in ("images", "annotations")}
    return _Document(**raw, categories=msgspec.Raw(json.dumps(document.get("categories", [])).encode()))


def _annotation_image_ids(document: _Document, path: Path) -> Iterator[int]:
    for index, raw in enumerate(document.annotations):
        try:
            yield _IMAGE_REFERENCE_DECODER.decode(raw).image_id
        except (msgspec.MsgspecError, ValueError, RecursionError):
            place = f"{path}, annotations[{index}]"
            number = integer_field(_object(raw, place=place), "image_id", place=place)
            if not -(2**63) <= number < 2**63:
                raise ShardError(f"{place}: expected a number of at most 64 bits as 'image_id', got {str(number)[:80]}") from None
            yield number


def _object(raw: msgspec.Raw, *, place: str) -> dict[str, Any]:
    value = _value(raw, place=place)
    if not isinstance(value, dict):
        raise ShardError(f"{place}: expected an object, got {str(value)[:80]}")
    return value


def _value(raw: msgspec.Raw, *, place: str) -> Any:
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{place} is not JSON: {error}") from error


def build_image_records(
    instances: tuple[list[AnnotatedImage], dict[int, str]],
    path_of: Callable[[str], Path],
    *,
    annotator: str,
    skip_missing: bool,
    keep_crowd: bool,
    counts: Counter[str],
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Yield record and JPEG of each image of `read_instances`; `path_of(name)` returns the path of its file.

    Counts "picture_missing" (where `skip_missing`), "crowd" (unless `keep_crowd`), "mask_without_pixels",
    "category_unknown" (the JSON lists categories, but not that of a mask, which then has no name) and the counters of
    `polygons_to_rle`. Raises ShardError, naming the image or the annotation, for one that cannot be used.
    """
    images, categories = instances
    keys = keys_from_paths([image.name for image in images])
    for key, image in zip(keys, images, strict=True):
        path = path_of(image.name)
        if not path.is_file():
            if not skip_missing:
                raise ShardError(f"no such image: {path}, which the JSON lists; '--missing skip' skips missing images")
            counts["picture_missing"] += 1
            continue
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ShardError(f"{path} has more than {MAX_IMAGE_BYTES} bytes, the limit of an image file")
        decoded = decode_annotated_image(path.read_bytes(), width=image.width, height=image.height, name=str(path), key=key)
        masks = list(_masks(image, categories, annotator=annotator, keep_crowd=keep_crowd, counts=counts))
        sides = {"width": image.width, "height": image.height}
        yield ImageRecord(key=key, image_id=image.image_id, masks=masks, **sides), decoded.jpeg


def _masks(
    image: AnnotatedImage, categories: dict[int, str], *, annotator: str, keep_crowd: bool, counts: Counter[str]
) -> Iterator[MaskRecord]:
    for index, annotation in enumerate(image.annotations()):
        place = f"{image.name}, annotation {index} (id {str(annotation.get('id'))[:80]})"
        if annotation.get("iscrowd", 0) and not keep_crowd:
            counts["crowd"] += 1
            continue
        mask_id = integer_field(annotation, "id", place=place)
        segmentation = annotation.get("segmentation")
        rle = segmentation_to_rle(segmentation, height=image.height, width=image.width, counts=counts, place=place)
        category, scores = annotation.get("category_id"), _scores(annotation, place)
        name = categories.get(category, "") if type(category) is int else ""
        record = mask_record_from_rle(rle, mask_id=mask_id, annotator=annotator, name=name, **scores) if rle else None
        if record is None or record.area == 0:
            counts["mask_without_pixels"] += 1
        else:
            counts.update(["category_unknown"] if categories and category not in categories else [])
            yield record


def segmentation_to_rle(segmentation: object, *, height: int, width: int, counts: Counter[str], place: str) -> Rle | None:
    """Convert COCO's three formats (polygons, run lengths, compressed RLE) to RLE; None for polygons without pixels.

    Raises ShardError, naming `place`, if it is none of them or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return parse_rle(segmentation, height=height, width=width, place=place)
    if not isinstance(segmentation, list):
        raise ShardError(f"{place}: expected polygons or an RLE as 'segmentation', got {str(segmentation)[:80]}")
    polygons = [_polygon(polygon, place) for polygon in segmentation]
    return polygons_to_rle(polygons, height=height, width=width, counts=counts, place=place)


def _polygon(polygon: object, place: str) -> np.ndarray:
    numbers = polygon if isinstance(polygon, list) and all(type(number) in (int, float) for number in polygon) else None
    if numbers is None or len(numbers) % 2:
        raise ShardError(f"{place}: expected a polygon as a list x, y, x, y, ... of numbers, got {str(polygon)[:80]}")
    try:
        return np.asarray(numbers, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ShardError(f"{place}: a coordinate of a polygon is too large") from error


def _scores(annotation: dict[str, Any], place: str) -> dict[str, Any]:
    """Return SA-1B's scores if the JSON has them, as that of `sam-data export coco` does, so that a model's mask keeps them."""
    scores: dict[str, Any] = {name: annotation[name] for name in ("predicted_iou", "stability_score") if name in annotation}
    for name, score in scores.items():
        if type(score) not in (int, float) or not 0 <= score <= 2:  # a predicted IoU may slightly exceed 1
            raise ShardError(f"{place}: expected a score from 0 to 1 as {name!r}, got {str(score)[:80]}")
    return scores
