"""Import of YOLO's segmentation labels: one text file per image, one polygon per line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import read_class_names
from sam_train.shards.importers.file_pairing import PairedFolders, files_by_stem, images_by_stem
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.polygons import polygons_to_rle
from sam_train.shards.importers.report import ImportReport

_MAX_BYTES = 256 << 20
_CLASS = re.compile(r"[0-9]{1,18}(\.0)?")
_NO_LABELS = ("classes", "labels", "names", "obj", "train", "valid", "val", "test", "README", "README.roboflow", "README.dataset")
"""Stems of text files that tools write beside the labels."""


@importer(default_frame="upright")
def import_yolo(
    images: Path,
    labels: Path | None = None,
    *,
    names: Path | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    image_extension: str = "",
    report: ImportReport,
) -> list[ImageItem]:
    """Import pairs of an image and YOLO segmentation labels, images/STEM.* and labels/STEM.txt, in the order of names.

    A line is one object: "class x y x y ...", with x and y as fractions of the image's width and height. Its line number,
    from 1, becomes the id of the mask. Several parts and holes that are joined by bridges (going forth and back on the same line)
    are restored exactly. An image without a text file has no objects, as in YOLO, and is counted as "image_without_labels".

    Without --labels, --images is the root of a data set with data.yaml: every images/**/STEM.* is paired with the file
    labels/**/STEM.txt beside that folder, as in train/images and train/labels, or images/train and labels/train. Class names are
    read from data.yaml. --split-folders writes a set of shards for each folder of the root.

    Dropped and counted: "box_without_polygon" (a line of four numbers, as for detection), "duplicate_line",
    "mask_without_pixels", "polygon_below_3_points", "polygon_without_pixels". Polygons clipped at the border of the image are
    counted as "polygon_clipped".

    Args:
        images: Folder of the images, or the root of the data set.
        labels: Folder of the text files.
        names: File of class names, data.yaml or text with one name per line; without it masks have no names.

    Raises:
        ShardError: Names the file and the line, for a text file without an image, an invalid line, fractions far outside 0 to
            1, a class that is not in `names`, and a file that cannot be read.
    """
    if labels is None:
        names = _data_yaml(images) if names is None else names
        image_paths, label_paths = _files_of_root(images, image_extension, report)
    else:
        suffixes = {"image_suffix": image_suffix, "label_suffix": label_suffix, "image_extension": image_extension}
        folders = PairedFolders(images, labels, what="label file", extensions=(".txt",), **suffixes)
        image_paths, label_paths = folders.files(report)
    report.categories.update({} if names is None else read_class_names(names))
    for stem in sorted(label_paths.keys() - image_paths.keys()):
        if Path(stem).name in _NO_LABELS:
            report.counts["other_file"] += 1
        else:
            expected = f"expected {images / stem}{image_suffix} with the extension of an image"
            report.absent("image_missing", str(label_paths[stem]), f"{label_paths[stem]} has no image: {expected}")
    if not image_paths.keys() & label_paths.keys():
        raise ShardError(f"no label files in {labels or images}: expected STEM.txt for the images in {images}")
    has_names = names is not None
    return [
        ImageItem(
            name=path.relative_to(images).as_posix(),
            file=DiskFile(path),
            masks=partial(_masks, label_paths.get(stem), has_names=has_names, report=report),
        )
        for stem, path in sorted(image_paths.items())
    ]


def _data_yaml(root: Path) -> Path:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    raise ShardError(f"{root} has no data.yaml: give the folder of the text files by --labels, or the root of a data set")


def _files_of_root(root: Path, image_extension: str, report: ImportReport) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and label files by their stem without the folder 'images' or 'labels'."""
    images = _without_folder(images_by_stem(root, extension=image_extension, report=report), "images", report)
    return images, _without_folder(files_by_stem(root, (".txt",), report=report), "labels", report)


def _without_folder(files: dict[str, Path], folder: str, report: ImportReport) -> dict[str, Path]:
    found = {}
    for stem, path in files.items():
        parts = stem.split("/")
        if folder not in parts[:-1]:
            report.counts["other_file"] += 1
            continue
        at = len(parts) - 2 - parts[-2::-1].index(folder)
        found["/".join(parts[:at] + parts[at + 1 :])] = path
    return found


def _masks(path: Path | None, height: int, width: int, *, has_names: bool, report: ImportReport) -> Iterator[MaskRecord]:
    if path is None:
        report.counts["image_without_labels"] += 1
        return
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        record = None
        with report.entry("annotation", f"{path}, line {number}"):
            if line.strip() in seen:
                report.counts["duplicate_line"] += 1
            else:
                record = _mask(line, number, f"{path}, line {number}", height, width, has_names=has_names, report=report)
        seen.update([line.strip()] if line.strip() else [])
        if record is not None:
            yield record


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MAX_BYTES:
        raise ShardError(f"{path} has more than {_MAX_BYTES} bytes, the limit of a label file")
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is not an ASCII text file: {error}") from error


def _mask(
    line: str, number: int, place: str, height: int, width: int, *, has_names: bool, report: ImportReport
) -> MaskRecord | None:
    fields = line.split()
    fractions = _fractions(fields, place=place)
    if fractions is None:
        return None
    if len(fractions) == 2:
        report.counts["box_without_polygon"] += 1
        return None
    name = _name(fields[0], report.categories, place) if has_names else ""
    rle = polygons_to_rle([fractions * [width, height]], height=height, width=width, counts=report.counts, place=place)
    if rle is None:
        report.counts["mask_without_pixels"] += 1
        return None
    return mask_record_from_rle(rle, mask_id=number, annotator="yolo", name=name)


def _name(number: str, classes: dict[int, str], place: str) -> str:
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
