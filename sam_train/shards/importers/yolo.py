"""Import of YOLO's segmentation labels: one text file per image, one polygon per line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.class_names import read_class_names
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem, load_image_or_raise
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.polygons import polygons_to_rle
from sam_train.shards.keys import image_id_from_path, keys_from_paths

_MAX_BYTES = 256 << 20
_CLASS = re.compile(r"[0-9]{1,18}(\.0)?")


def import_yolo(
    images: Path, labels: Path, *, names: Path | None = None, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import pairs of an image and YOLO segmentation labels, images/STEM.* and labels/STEM.txt, in the order of names.

    A line is one object: "class x y x y ...", with x and y as fractions of the upright image's width and height. Its line number,
    from 1, becomes the id of the mask. Several parts and holes that are joined by bridges (going forth and back on the same line)
    are restored exactly. An image without a text file has no objects, as in YOLO, and is counted as "picture_without_labels".

    Dropped and counted: "box_without_polygon" (a line of four numbers, as for detection), "mask_without_pixels",
    "polygon_below_3_points", "polygon_without_pixels". Polygons clipped at the border of the image are counted as
    "polygon_clipped".

    Args:
        images: Folder of the images.
        labels: Folder of the text files.
        names: File of class names, data.yaml or text with one name per line; without it masks have no names.

    Raises:
        ShardError: Names the file and the line, for a text file without an image, an invalid line, fractions far outside 0 to
            1, a class that is not in `names`, and a file that cannot be read.
    """
    counts = Counter() if counts is None else counts
    classes = None if names is None else read_class_names(names)
    image_paths, label_paths = images_by_stem(images), files_by_stem(labels, (".txt",))
    for stem in label_paths:
        if stem not in image_paths:
            raise ShardError(f"{label_paths[stem]} has no image: expected {images / stem} with the extension of an image")
    if not label_paths:
        raise ShardError(f"no label files in {labels}: expected STEM.txt for the images in {images}")
    files = [image_paths[stem].relative_to(images).as_posix() for stem in sorted(image_paths)]
    for key, name, stem in zip(keys_from_paths(files), files, sorted(image_paths), strict=True):
        decoded = load_image_or_raise(image_paths[stem], key=key)
        height, width = decoded.image.shape[:2]
        if stem not in label_paths:
            counts["picture_without_labels"] += 1
        masks = list(_masks(label_paths[stem], height, width, classes, counts)) if stem in label_paths else []
        yield ImageRecord(key=key, image_id=image_id_from_path(name), width=width, height=height, masks=masks), decoded.jpeg


def _masks(path: Path, height: int, width: int, classes: dict[int, str] | None, counts: Counter[str]) -> Iterator[MaskRecord]:
    if path.stat().st_size > _MAX_BYTES:
        raise ShardError(f"{path} has more than {_MAX_BYTES} bytes, the limit of a label file")
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is not an ASCII text file: {error}") from error
    for number, line in enumerate(lines, start=1):
        place, fields = f"{path}, line {number}", line.split()
        fractions = _fractions(fields, place=place)
        if fractions is None:
            continue
        if len(fractions) == 2:
            counts["box_without_polygon"] += 1
            continue
        name = _name(fields[0], classes, place)
        rle = polygons_to_rle([fractions * [width, height]], height=height, width=width, counts=counts, place=place)
        if rle is None:
            counts["mask_without_pixels"] += 1
        else:
            yield mask_record_from_rle(rle, mask_id=number, annotator="yolo", name=name)


def _name(number: str, classes: dict[int, str] | None, place: str) -> str:
    if classes is None:
        return ""
    if int(number.removesuffix(".0")) not in classes:
        raise ShardError(f"{place}: class {number[:20]} is not in the file of class names, which has {len(classes)}")
    return classes[int(number.removesuffix(".0"))]


def _fractions(fields: list[str], *, place: str) -> np.ndarray | None:
    """Return the corners, P x 2, None for an empty line."""
    if not fields:
        return None
    try:
        numbers = np.array(fields[1:], np.float64)
    except ValueError as error:
        raise ShardError(f"{place}: expected a class and numbers, got {' '.join(fields)[:80]!r}") from error
    if not _CLASS.fullmatch(fields[0]) or len(numbers) % 2 or not len(numbers):
        raise ShardError(f"{place}: expected 'class x y x y ...', got {len(fields)} fields beginning with {fields[0][:80]!r}")
    if not ((numbers >= -1) & (numbers <= 2)).all():
        raise ShardError(
            f"{place}: expected x and y as fractions of width and height, 0 to 1; got {numbers[np.abs(numbers).argmax()]}"
        )
    return numbers.reshape(-1, 2)
