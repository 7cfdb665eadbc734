"""COCO's instances JSON and its relatives: read, checked, one picture at a time to records.

A JSON of all of LVIS is a gigabyte, and ten as objects of Python. So the file is mapped, each entry is found and left as the
bytes that it is (msgspec's Raw), and only those of one picture at a time become objects.
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
    """One entry of `images` and the annotations that name it, in the order of the JSON, as they stand there."""

    name: str
    image_id: int
    width: int
    height: int
    raw: list[msgspec.Raw]

    def annotations(self) -> list[dict[str, Any]]:
        """Made of their bytes at each call. Raises ShardError, naming the image, for bytes that are none."""
        return [_object(raw, place=f"{self.name}, its annotation {index}") for index, raw in enumerate(self.raw)]


class _Document(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


class _Owned(msgspec.Struct, gc=False):
    """Of an annotation, whose it is."""

    image_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


_DOCUMENT, _OWNED = msgspec.json.Decoder(_Document), msgspec.json.Decoder(_Owned)


def read_json_object(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object of which `lists` are lists of objects. Raises ShardError, naming the file, for anything else."""
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
    """The integer `entry[name]`. Raises ShardError, naming `place`."""
    value = entry.get(name)
    if type(value) is not int:
        raise ShardError(f"{place}: expected a whole number as {name!r}, got {str(value)[:80]}")
    return value


def read_instances(path: Path, name_of: Callable[[dict[str, Any], str], str]) -> tuple[list[AnnotatedImage], dict[int, str]]:
    """Every image of an instances JSON, in the order of names, and what its categories are called, by their ids.

    `name_of(image, place)` says which file holds an image. A JSON may be without categories: then nothing is called anything.
    Raises ShardError, naming file and entry, for what is no such JSON, an image given twice, an annotation of none.
    """
    document = _read_document(path)
    categories = parse_category_names(_value(document.categories, place=f"{path}, categories"), place=str(path))
    owners = np.fromiter(_owners(document, path), np.int64, len(document.annotations))
    in_order = np.argsort(owners, kind="stable")
    ids, starts = np.unique(owners[in_order], return_index=True)
    ends = [*starts[1:].tolist(), len(owners)]
    of_image = {number: in_order[start:end] for number, start, end in zip(ids.tolist(), starts.tolist(), ends, strict=False)}
    images, seen = [], set()
    for index, raw in enumerate(document.images):
        place = f"{path}, images[{index}]"
        image = _object(raw, place=place)
        image_id = integer_field(image, "id", place=place)
        if image_id in seen:
            raise ShardError(f"{place}: id {image_id} was there before: every image needs its own")
        seen.add(image_id)
        width, height = (integer_field(image, side, place=place) for side in ("width", "height"))
        own = [document.annotations[place] for place in of_image.pop(image_id, ())]
        images.append(AnnotatedImage(name=name_of(image, place), image_id=image_id, width=width, height=height, raw=own))
    if of_image:
        raise ShardError(f"{path}: {len(of_image)} image ids of annotations are none of an image, such as {next(iter(of_image))}")
    if not images:
        raise ShardError(f"{path}: no images: expected COCO's instances JSON")
    return sorted(images, key=lambda image: image.name), categories


def _read_document(path: Path) -> _Document:
    try:
        with path.open("rb") as stream:
            return _DOCUMENT.decode(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        # Python's reader is the more patient (NaN, a byte order mark), and knows what is wrong; it wants the memory.
        document = read_json_object(path, ("images", "annotations"))
    raw = {name: [msgspec.Raw(json.dumps(entry).encode()) for entry in document[name]] for name in ("images", "annotations")}
    return _Document(**raw, categories=msgspec.Raw(json.dumps(document.get("categories", [])).encode()))


def _owners(document: _Document, path: Path) -> Iterator[int]:
    for index, raw in enumerate(document.annotations):
        try:
            yield _OWNED.decode(raw).image_id
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
    leave_missing_out: bool,
    keep_crowd: bool,
    counts: Counter[str],
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Each image of `read_instances` with its masks; `path_of(name)` is where its picture lies.

    Counts "picture_missing" (where `leave_missing_out`), "crowd" (unless `keep_crowd`), "mask_without_pixels",
    "category_unknown" (the JSON has categories, but not a mask's, which stays without a name) and what
    `polygons_to_rle` counts. Raises ShardError, naming picture or annotation, for what cannot be used.
    """
    images, categories = instances
    keys = keys_from_paths([image.name for image in images])
    for key, image in zip(keys, images, strict=True):
        path = path_of(image.name)
        if not path.is_file():
            if not leave_missing_out:
                raise ShardError(f"no such picture: {path}, of which the JSON has masks; '--missing leave_out' goes on without")
            counts["picture_missing"] += 1
            continue
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ShardError(f"{path} is larger than {MAX_IMAGE_BYTES} bytes: no picture that can be used is")
        picture = decode_annotated_image(path.read_bytes(), width=image.width, height=image.height, name=str(path), key=key)
        masks = list(_masks(image, categories, annotator=annotator, keep_crowd=keep_crowd, counts=counts))
        sides = {"width": image.width, "height": image.height}
        yield ImageRecord(key=key, image_id=image.image_id, masks=masks, **sides), picture.jpeg


def _masks(
    image: AnnotatedImage, categories: dict[int, str], *, annotator: str, keep_crowd: bool, counts: Counter[str]
) -> Iterator[MaskRecord]:
    for index, annotation in enumerate(image.annotations()):
        place = f"{image.name}, its annotation {index} (id {str(annotation.get('id'))[:80]})"
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
    """COCO's three forms (outlines, runs, compressed runs) to RLE; None for outlines without a pixel.

    Raises ShardError, naming `place`.
    """
    if isinstance(segmentation, dict):
        return parse_rle(segmentation, height=height, width=width, place=place)
    if not isinstance(segmentation, list):
        raise ShardError(f"{place}: expected polygons or an RLE as 'segmentation', got {str(segmentation)[:80]}")
    outlines = [_outline(polygon, place) for polygon in segmentation]
    return polygons_to_rle(outlines, height=height, width=width, counts=counts, place=place)


def _outline(polygon: object, place: str) -> np.ndarray:
    numbers = polygon if isinstance(polygon, list) and all(type(number) in (int, float) for number in polygon) else None
    if numbers is None or len(numbers) % 2:
        raise ShardError(f"{place}: a polygon is a list x, y, x, y, ... of numbers, got {str(polygon)[:80]}")
    try:
        return np.asarray(numbers, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ShardError(f"{place}: a polygon's corner is too large a number") from error


def _scores(annotation: dict[str, Any], place: str) -> dict[str, Any]:
    """SA-1B's scores where the JSON has them, as our own export does: a mask that came from a model stays one."""
    scores: dict[str, Any] = {name: annotation[name] for name in ("predicted_iou", "stability_score") if name in annotation}
    for name, score in scores.items():
        if type(score) not in (int, float) or not 0 <= score <= 2:  # an estimate of IoU may pass 1 a little
            raise ShardError(f"{place}: expected a score from 0 to 1 as {name!r}, got {str(score)[:80]}")
    return scores
