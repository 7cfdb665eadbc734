"""COCO's instances JSON and its relatives: read, checked, one picture at a time to records."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Rle
from sam_train.shards.importers.mask_records import checked_rle, record_of_rle
from sam_train.shards.importers.pairs import picture_as_annotated
from sam_train.shards.importers.polygons import rle_of_polygons
from sam_train.shards.keys import keys_from_paths

MAX_PICTURE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One entry of `images` and the annotations that name it, in the order of the JSON, as they stand there."""

    name: str
    image_id: int
    width: int
    height: int
    annotations: list[dict[str, Any]]


def read_json(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
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


def whole_number(entry: dict[str, Any], name: str, *, place: str) -> int:
    """The integer `entry[name]`. Raises ShardError, naming `place`."""
    value = entry.get(name)
    if type(value) is not int:
        raise ShardError(f"{place}: expected a whole number as {name!r}, got {str(value)[:80]}")
    return value


def read_instances(path: Path, name_of: Callable[[dict[str, Any], str], str]) -> list[AnnotatedImage]:
    """Every image of an instances JSON, in the order of names. `name_of(image, place)` says which file holds it.

    Raises ShardError, naming file and entry, for what is no such JSON, an image given twice, an annotation of none.
    """
    document = read_json(path, ("images", "annotations"))
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for index, annotation in enumerate(document["annotations"]):
        by_image[whole_number(annotation, "image_id", place=f"{path}, annotations[{index}]")].append(annotation)
    images, seen = [], set()
    for index, image in enumerate(document["images"]):
        place = f"{path}, images[{index}]"
        image_id = whole_number(image, "id", place=place)
        if image_id in seen:
            raise ShardError(f"{place}: id {image_id} was there before: every image needs its own")
        seen.add(image_id)
        width, height = (whole_number(image, side, place=place) for side in ("width", "height"))
        name, annotations = name_of(image, place), by_image.pop(image_id, [])
        images.append(AnnotatedImage(name=name, image_id=image_id, width=width, height=height, annotations=annotations))
    if by_image:
        raise ShardError(f"{path}: {len(by_image)} image ids of annotations are none of an image, such as {next(iter(by_image))}")
    if not images:
        raise ShardError(f"{path}: no images: expected COCO's instances JSON")
    return sorted(images, key=lambda image: image.name)


def records_of_images(
    images: list[AnnotatedImage],
    path_of: Callable[[str], Path],
    *,
    annotator: str,
    leave_missing_out: bool,
    keep_crowd: bool,
    counts: Counter[str],
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Each image with its masks; `path_of(name)` is where its picture lies.

    Counts "picture_missing" (where `leave_missing_out`), "crowd" (unless `keep_crowd`), "mask_without_pixels" and what
    `rle_of_polygons` counts. Raises ShardError, naming picture or annotation, for what cannot be used.
    """
    keys = keys_from_paths([image.name for image in images])
    for key, image in zip(keys, images, strict=True):
        path = path_of(image.name)
        if not path.is_file():
            if not leave_missing_out:
                raise ShardError(f"no such picture: {path}, of which the JSON has masks; '--missing leave_out' goes on without")
            counts["picture_missing"] += 1
            continue
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise ShardError(f"{path} is larger than {MAX_PICTURE_BYTES} bytes: no picture that can be used is")
        picture = picture_as_annotated(path.read_bytes(), width=image.width, height=image.height, name=str(path), key=key)
        masks = list(_masks(image, annotator=annotator, keep_crowd=keep_crowd, counts=counts))
        sides = {"width": image.width, "height": image.height}
        yield ImageRecord(key=key, image_id=image.image_id, masks=masks, **sides), picture.jpeg


def _masks(image: AnnotatedImage, *, annotator: str, keep_crowd: bool, counts: Counter[str]) -> Iterator[MaskRecord]:
    for index, annotation in enumerate(image.annotations):
        place = f"{image.name}, its annotation {index} (id {str(annotation.get('id'))[:80]})"
        if annotation.get("iscrowd", 0) and not keep_crowd:
            counts["crowd"] += 1
            continue
        mask_id = whole_number(annotation, "id", place=place)
        segmentation = annotation.get("segmentation")
        rle = rle_of_segmentation(segmentation, height=image.height, width=image.width, counts=counts, place=place)
        record = record_of_rle(rle, mask_id=mask_id, annotator=annotator, **_scores(annotation, place)) if rle else None
        if record is None or record.area == 0:
            counts["mask_without_pixels"] += 1
        else:
            yield record


def rle_of_segmentation(segmentation: object, *, height: int, width: int, counts: Counter[str], place: str) -> Rle | None:
    """COCO's three forms (outlines, runs, compressed runs) to RLE; None for outlines without a pixel.

    Raises ShardError, naming `place`.
    """
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, height=height, width=width, place=place)
    if not isinstance(segmentation, list):
        raise ShardError(f"{place}: expected polygons or an RLE as 'segmentation', got {str(segmentation)[:80]}")
    outlines = [_outline(polygon, place) for polygon in segmentation]
    return rle_of_polygons(outlines, height=height, width=width, counts=counts, place=place)


def _outline(polygon: object, place: str) -> np.ndarray:
    numbers = polygon if isinstance(polygon, list) and all(type(number) in (int, float) for number in polygon) else None
    if numbers is None or len(numbers) % 2:
        raise ShardError(f"{place}: a polygon is a list x, y, x, y, ... of numbers, got {str(polygon)[:80]}")
    try:
        return np.asarray(numbers, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ShardError(f"{place}: a polygon's corner is too large a number") from error


def _scores(annotation: dict[str, Any], place: str) -> dict[str, float]:
    """SA-1B's scores where the JSON has them, as our own export does: a mask that came from a model stays one."""
    scores: dict[str, Any] = {name: annotation[name] for name in ("predicted_iou", "stability_score") if name in annotation}
    for name, score in scores.items():
        if type(score) not in (int, float) or not 0 <= score <= 2:  # an estimate of IoU may pass 1 a little
            raise ShardError(f"{place}: expected a score from 0 to 1 as {name!r}, got {str(score)[:80]}")
    return scores
