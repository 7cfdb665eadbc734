"""Import of folders of images and label maps, the format of DSB 2018 nuclei, cell tracking and most microscopy data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.class_names import parse_class_name, read_class_names
from sam_train.shards.importers.file_pairing import PairedFolders
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.mask_files import MASK_EXTENSIONS, drop_ignored, label_file_size, read_label_map
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.importers.report import ImportReport


@importer(default_frame="upright")
def import_label_maps(
    images: Path,
    labels: Path,
    *,
    name: str = "",
    names: Path | None = None,
    class_divisor: int = 1,
    ignore: tuple[int, ...] | None = None,
    threshold: int | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    image_extension: str = "",
    min_area: int = 1,
    report: ImportReport,
) -> list[ImageItem]:
    """Import pairs of an image and a label map, images/STEM.* and labels/STEM.*, in the order of names.

    A label map is a PNG, TIFF, BMP or .npy with one channel, or equal ones: 0 is background, every other value is one instance
    and becomes the id of its mask. 255 is ignored in maps with a palette, as Pascal VOC writes them; --ignore changes that. An
    image without instances becomes a record without masks. With --names, the class of an instance is its value divided by
    --class-divisor: 1 where values are classes, 1000 where they are class * 1000 + number. --threshold reads maps that are not
    exact, such as JPEG, as one instance.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps; it may be that of the images if --label-suffix tells them apart.
        names: File of class names (data.yaml, or text with one name per line from 0).
        class_divisor: Divisor that makes the class number of a value, with --names.

    Raises:
        ShardError: Names the file, for an image without a label map or the reverse, a pair of different sizes, or a file that
            cannot be read.
    """
    class_name = parse_class_name(name, place="--name")
    if class_divisor < 1:
        raise ShardError(f"--class-divisor is {class_divisor}: expected 1 or more")
    report.categories.update({} if names is None else read_class_names(names))

    def name_of(value: int) -> str:
        number = value // class_divisor
        if names is not None and number not in report.categories:
            raise ShardError(
                f"the value {value} is of class {number}, which {names} does not name: see --class-divisor, --ignore"
            )
        return report.categories.get(number, class_name)

    folders = PairedFolders(
        images,
        labels,
        what="label map",
        extensions=MASK_EXTENSIONS,
        image_suffix=image_suffix,
        label_suffix=label_suffix,
        image_extension=image_extension,
    )
    read = partial(_masks, name_of=name_of, ignore=ignore, threshold=threshold, min_area=min_area, report=report)
    return [
        ImageItem(name=file, file=DiskFile(image), masks=partial(read, label), declared_size=partial(label_file_size, label))
        for file, image, label in folders.pairs(report)
    ]


def _masks(
    label: Path,
    height: int,
    width: int,
    *,
    name_of: Callable[[int], str],
    ignore: tuple[int, ...] | None,
    threshold: int | None,
    min_area: int,
    report: ImportReport,
) -> list[MaskRecord]:
    ids = read_label_map(label, threshold=threshold)
    check_matches_image_size(label, ids, height=height, width=width)
    if threshold is None:
        ids = drop_ignored(ids, label, ignore, report.counts)
    try:
        return mask_records_from_id_map(ids, annotator="label_maps", min_area=min_area, counts=report.counts, name_of=name_of)
    except ShardError as error:
        raise ShardError(f"{label}: {error}") from error


def check_matches_image_size(path: Path, ids: np.ndarray, *, height: int, width: int, key: str = "") -> None:
    """Raise ShardError, naming the label file, unless its map has the size of its image."""
    if ids.shape[:2] != (height, width):
        message = f"{path} is {ids.shape[1]} x {ids.shape[0]}, its image is {width} x {height}"
        raise ShardError(f"{message}: the sizes must agree (see also --frame)", key=key)
