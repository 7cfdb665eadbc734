"""Reading of COCO's instances JSON and related formats, and conversion to records, one image at a time.

The JSON of the full LVIS has a gigabyte, which becomes ten as Python objects. So the file is memory-mapped, entries are kept as
raw bytes (msgspec's Raw), and only those of one image at a time are decoded.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import parse_category_names
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import check_declared_size
from sam_train.shards.importers.json_values import as_integer, flag, id_field, integer_field, parse_json, read_json_object
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.segmentations import segmentation_to_rle


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One entry of `images` and its annotations, undecoded, in the order of the JSON."""

    name: str
    image_id: int
    width: int
    height: int
    raw_annotations: list[msgspec.Raw]

    def annotations(self, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
        """Decode the annotations, anew at each call; yield the place and the content of each."""
        for index, raw in enumerate(self.raw_annotations):
            place = f"{self.name}, annotation {index}"
            with report.entry("annotation", place):
                yield place, _object(raw, place=place)


class _Document(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


class _ImageReference(msgspec.Struct, gc=False):
    """The part of an annotation that names its image."""

    image_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


_DOCUMENT_DECODER = msgspec.json.Decoder(_Document)
_IMAGE_REFERENCE_DECODER = msgspec.json.Decoder(_ImageReference)


def read_instances(path: Path, name_of: Callable[[dict[str, Any], str], str], report: ImportReport) -> list[AnnotatedImage]:
    """Read an instances JSON: its images in the order of names. The names of its categories are stored in `report`.

    `name_of(image, place)` returns the file name of an entry of `images`. Ids and sizes may be integral floats or texts, which
    is counted as "number_normalised". Raises ShardError, naming the file and the entry, for an invalid JSON and, as `report`
    says, for a duplicate image id and an annotation of no image.
    """
    document = _read_document(path)
    categories = _value(document.categories, place=f"{path}, categories")
    report.categories.update(parse_category_names(categories, place=str(path)))
    annotations_by_image = _annotations_by_image(document, path, report)
    images, used_ids = [], set()
    for index, raw in enumerate(document.images):
        place = f"{path}, images[{index}]"
        with report.entry("image", place):
            image = _object(raw, place=place)
            image_id = id_field(image, "id", place=place, counts=report.counts)
            if image_id in used_ids:
                raise ShardError(f"{place}: the id {image_id} is a duplicate: every image needs its own")
            used_ids.add(image_id)
            numbers = annotations_by_image.pop(image_id, ())
            width, height = (integer_field(image, side, place=place, counts=report.counts) for side in ("width", "height"))
            raw_annotations = [document.annotations[number] for number in numbers]
            sides = {"width": width, "height": height}
            name = name_of(image, place)
            images.append(AnnotatedImage(name=name, image_id=image_id, raw_annotations=raw_annotations, **sides))
    for image_id, numbers in annotations_by_image.items():
        for number in numbers:
            with report.entry("annotation", f"{path}, annotations[{number}]"):
                ids = f"annotations name {len(annotations_by_image)} image ids that no image has, such as {image_id}"
                raise ShardError(f"{path}: {ids}")
    if not images:
        raise ShardError(f"{path}: no images: expected COCO's instances JSON")
    return sorted(images, key=lambda image: image.name)


def _annotations_by_image(document: _Document, path: Path, report: ImportReport) -> dict[int, Any]:
    """Return the indices of the annotations by image id."""
    found = [(number, image_id) for number, image_id in _annotation_image_ids(document, path, report)]
    table = np.array(found, np.int64).reshape(-1, 2)
    order = np.argsort(table[:, 1], kind="stable")
    unique_ids, starts = np.unique(table[order, 1], return_index=True)
    parts = np.split(table[order, 0], starts[1:]) if found else []
    return dict(zip(unique_ids.tolist(), parts, strict=True))


def _read_document(path: Path) -> _Document:
    try:
        with path.open("rb") as stream:
            return _DOCUMENT_DECODER.decode(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        # Python's parser accepts more (NaN, a byte order mark) and reports errors better, but needs more memory.
        document = read_json_object(path, ("images", "annotations"))
    raw = {name: [msgspec.Raw(json.dumps(entry).encode()) for entry in document[name]] for name in ("images", "annotations")}
    return _Document(**raw, categories=msgspec.Raw(json.dumps(document.get("categories", [])).encode()))


def _annotation_image_ids(document: _Document, path: Path, report: ImportReport) -> Iterator[tuple[int, int]]:
    for index, raw in enumerate(document.annotations):
        try:
            yield index, _IMAGE_REFERENCE_DECODER.decode(raw).image_id
        except (msgspec.MsgspecError, ValueError, RecursionError):
            place = f"{path}, annotations[{index}]"
            with report.entry("annotation", place):
                number = id_field(_object(raw, place=place), "image_id", place=place)
                if not -(2**63) <= number < 2**63:
                    message = f"{place}: expected a number of at most 64 bits as 'image_id', got {str(number)[:80]}"
                    raise ShardError(message) from None
                yield index, number


def _object(raw: msgspec.Raw, *, place: str) -> dict[str, Any]:
    value = _value(raw, place=place)
    if not isinstance(value, dict):
        raise ShardError(f"{place}: expected an object, got {str(value)[:80]}")
    return value


def _value(raw: msgspec.Raw, *, place: str) -> Any:
    return parse_json(bytes(raw), place=place)


def instance_items(
    images: list[AnnotatedImage],
    path_of: Callable[[str], Path],
    *,
    annotator: str,
    drop_crowd: bool,
    report: ImportReport,
) -> list[ImageItem]:
    """Return an item for each image of `read_instances`; `path_of(name)` returns the path of its file.

    The masks count "crowd" (with `drop_crowd`), "box_without_polygon", "mask_without_pixels", "category_unknown" (the JSON lists
    categories, but not that of a mask, which then has no name), "mask_id_assigned" (an annotation without an id) and the
    counters of `segmentation_to_rle`.
    """
    return [
        ImageItem(
            name=image.name,
            file=DiskFile(path_of(image.name)),
            masks=partial(_masks, image, annotator=annotator, drop_crowd=drop_crowd, report=report),
            declared_size=partial(_size, image),
            image_id=image.image_id,
        )
        for image in images
    ]


def _size(image: AnnotatedImage) -> tuple[int, int]:
    return image.width, image.height


def _masks(
    image: AnnotatedImage, height: int, width: int, *, annotator: str, drop_crowd: bool, report: ImportReport
) -> Iterator[MaskRecord]:
    check_declared_size(image.name, _size(image), height=height, width=width)
    for index, (entry, annotation) in enumerate(image.annotations(report)):
        place = f"{entry} (id {str(annotation.get('id'))[:80]})"
        record = None
        with report.entry("annotation", place):
            record = _record(annotation, index, image, annotator=annotator, drop_crowd=drop_crowd, report=report, place=place)
        if record is not None:
            yield record


def _record(
    annotation: dict[str, Any],
    index: int,
    image: AnnotatedImage,
    *,
    annotator: str,
    drop_crowd: bool,
    report: ImportReport,
    place: str,
) -> MaskRecord | None:
    counts = report.counts
    if flag(annotation.get("iscrowd"), place=f"{place}, iscrowd") and drop_crowd:
        counts["crowd"] += 1
        return None
    segmentation = annotation.get("segmentation")
    if not segmentation and annotation.get("bbox"):
        counts["box_without_polygon"] += 1
        return None
    mask_id = index + 1 if annotation.get("id") is None else id_field(annotation, "id", place=place, counts=counts)
    counts.update(["mask_id_assigned"] if annotation.get("id") is None else [])
    rle = segmentation_to_rle(segmentation, height=image.height, width=image.width, counts=counts, place=place)
    category = as_integer(annotation.get("category_id"))
    name = "" if category is None else report.categories.get(category, "")
    scores = _scores(annotation, place)
    record = mask_record_from_rle(rle, mask_id=mask_id, annotator=annotator, name=name, **scores) if rle else None
    if record is None or record.area == 0:
        counts["mask_without_pixels"] += 1
        return None
    counts.update(["category_unknown"] if report.categories and category not in report.categories else [])
    return record


def _scores(annotation: dict[str, Any], place: str) -> dict[str, Any]:
    """Return SA-1B's scores if the JSON has them, as that of `sam-data export coco` does, so that a model's mask keeps them."""
    scores: dict[str, Any] = {name: annotation[name] for name in ("predicted_iou", "stability_score") if name in annotation}
    for name, score in scores.items():
        if type(score) not in (int, float) or not 0 <= score <= 2:  # a predicted IoU may slightly exceed 1
            raise ShardError(f"{place}: expected a score from 0 to 1 as {name!r}, got {str(score)[:80]}")
    return scores
