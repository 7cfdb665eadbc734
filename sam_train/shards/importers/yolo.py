"""YOLO's segmentation labels: a text file a picture, an outline a line."""

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
    """Pairs `images/STEM.*` and `labels/STEM.txt` to records and JPEG bytes, in name order.

    A line is `class x y x y ...`, fractions of the upright picture's width and height, and one object; its number in the file,
    from 1, becomes the mask's id. Several parts and holes joined by bridges that go and return on one line come out as they
    were. A picture without text file has no objects, as YOLO has it: counted as "picture_without_labels".
    `names` says what the classes are called: the set's data.yaml, or a text with a name a line; without it masks have no name.

    Left out and counted: "box_without_polygon" (a line of four numbers, as for detection), "mask_without_pixels",
    "polygon_below_3_points", "polygon_without_pixels"; "polygon_clipped" counts outlines cut at the picture's border.

    Raises ShardError, naming file and line, for a text file without picture, a line that is none of the above, fractions far
    outside 0 to 1, a class that `names` lacks, and a file that cannot be read.
    """
    counts = Counter() if counts is None else counts
    classes = None if names is None else read_class_names(names)
    pictures, texts = images_by_stem(images), files_by_stem(labels, (".txt",))
    for stem in texts:
        if stem not in pictures:
            raise ShardError(f"{texts[stem]} has no picture: expected {images / stem} with the ending of one")
    if not texts:
        raise ShardError(f"no label files in {labels}: expected STEM.txt for pictures in {images}")
    files = [pictures[stem].relative_to(images).as_posix() for stem in sorted(pictures)]
    for key, name, stem in zip(keys_from_paths(files), files, sorted(pictures), strict=True):
        picture = load_image_or_raise(pictures[stem], key=key)
        height, width = picture.image.shape[:2]
        if stem not in texts:
            counts["picture_without_labels"] += 1
        masks = list(_masks(texts[stem], height, width, classes, counts)) if stem in texts else []
        yield ImageRecord(key=key, image_id=image_id_from_path(name), width=width, height=height, masks=masks), picture.jpeg


def _masks(path: Path, height: int, width: int, classes: dict[int, str] | None, counts: Counter[str]) -> Iterator[MaskRecord]:
    if path.stat().st_size > _MAX_BYTES:
        raise ShardError(f"{path} is larger than {_MAX_BYTES} bytes: no label file is")
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is no text of numbers: {error}") from error
    for number, line in enumerate(lines, start=1):
        place, words = f"{path}, line {number}", line.split()
        fractions = _fractions(words, place=place)
        if fractions is None:
            continue
        if len(fractions) == 2:
            counts["box_without_polygon"] += 1
            continue
        name = _name(words[0], classes, place)
        rle = polygons_to_rle([fractions * [width, height]], height=height, width=width, counts=counts, place=place)
        if rle is None:
            counts["mask_without_pixels"] += 1
        else:
            yield mask_record_from_rle(rle, mask_id=number, annotator="yolo", name=name)


def _name(number: str, classes: dict[int, str] | None, place: str) -> str:
    if classes is None:
        return ""
    if int(number.removesuffix(".0")) not in classes:
        raise ShardError(f"{place}: class {number[:20]} has no name in the file of names, which has {len(classes)}")
    return classes[int(number.removesuffix(".0"))]


def _fractions(words: list[str], *, place: str) -> np.ndarray | None:
    """P x 2, or None of an empty line."""
    if not words:
        return None
    try:
        numbers = np.array(words[1:], np.float64)
    except ValueError as error:
        raise ShardError(f"{place}: expected a class and numbers, got {' '.join(words)[:80]!r}") from error
    if not _CLASS.fullmatch(words[0]) or len(numbers) % 2 or not len(numbers):
        raise ShardError(f"{place}: expected 'class x y x y ...', got {len(words)} words beginning with {words[0][:80]!r}")
    if not ((numbers >= -1) & (numbers <= 2)).all():
        raise ShardError(f"{place}: x and y are fractions of width and height, 0 to 1; found {numbers[np.abs(numbers).argmax()]}")
    return numbers.reshape(-1, 2)
