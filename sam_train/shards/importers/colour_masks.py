"""Import of label maps whose classes are colours, and the colours of Pascal VOC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.rle import encode_rle
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import PairedFolders
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_files import MASK_EXTENSIONS, label_file_size, read_colours
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport

_LINE = re.compile(r"(?P<name>.+?)[\s:,]+(?P<r>\d{1,3})[\s,]+(?P<g>\d{1,3})[\s,]+(?P<b>\d{1,3})\s*(:.*)?")
Colours = dict[tuple[int, int, int], tuple[int, str]]
"""Colour -> number and name of its class."""


@importer(default_frame="upright")
def import_colour_masks(
    images: Path,
    labels: Path,
    *,
    colours: Path | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    image_extension: str = "",
    min_area: int = 1,
    report: ImportReport,
) -> list[ImageItem]:
    """Import pairs of an image and an RGB label map in which each colour is a class, in the order of names.

    Every colour of an image becomes one mask, except black, which is background. --colours names the classes: a text file with
    one "name r g b" or "name:r,g,b" per line, as in the labelmap.txt of CVAT; a colour that it does not list is an error, and the
    class "background" is none. The id of a mask is the number of its class, from 0 in the file, or without a file
    R + 256 G + 65536 B.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps; it may be that of the images if --label-suffix tells them apart.
        colours: File of the classes and their colours.

    Raises:
        ShardError: Names the file, for an image without a label map or the reverse, a pair of different sizes, a map that is not
            RGB without loss, and a colour that the file does not list.
    """
    classes = None if colours is None else read_colour_file(colours)
    report.categories.update(dict(classes.values()) if classes else {})
    suffixes = {"image_suffix": image_suffix, "label_suffix": label_suffix, "image_extension": image_extension}
    folders = PairedFolders(images, labels, what="label map", extensions=MASK_EXTENSIONS, **suffixes)
    return [
        ImageItem(
            name=name,
            file=DiskFile(image),
            masks=partial(_masks, label, classes, min_area, report),
            declared_size=partial(label_file_size, label),
        )
        for name, image, label in folders.pairs(report)
    ]


def read_colour_file(path: Path) -> Colours:
    """Read classes and colours, one "name r g b" or "name:r,g,b" per line. Raises ShardError, naming the line, if invalid."""
    if not path.is_file():
        raise ShardError(f"no such file: {path}")
    classes: Colours = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        colour = tuple(int(match[side]) for side in "rgb") if match else ()
        if match is None or max(colour) > 255 or colour in classes:
            raise ShardError(f"{path}, line {number}: expected 'name r g b' with a colour of its own, got {line[:80]!r}")
        classes[colour[0], colour[1], colour[2]] = len(classes), parse_class_name(match["name"], place=f"{path}, line {number}")
    return classes


def voc_colour(index: int) -> tuple[int, int, int]:
    """Return the colour of an index in Pascal VOC's palette: its bits, spread over the high bits of red, green and blue."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def colours_to_indices(values: np.ndarray, indices: Mapping[tuple[int, int, int], int], *, place: str) -> np.ndarray:
    """Return the index of each pixel's colour, H x W int64. Raises ShardError, naming `place`, for a colour without an index."""
    codes = values.astype(np.int64) @ np.array([1, 256, 65536])
    found, inverse = np.unique(codes, return_inverse=True)
    table = {red + 256 * green + 65536 * blue: index for (red, green, blue), index in indices.items()}
    for code in found.tolist():
        if code not in table:
            colour = (code % 256, code // 256 % 256, code // 65536)
            raise ShardError(f"{place} has the colour {colour}, which is of no class: list it, or export a lossless map")
    return np.array([table[code] for code in found.tolist()])[inverse].reshape(codes.shape)


def _masks(
    label: Path, classes: Colours | None, min_area: int, report: ImportReport, height: int, width: int
) -> Iterator[MaskRecord]:
    values = read_colours(label)
    check_matches_image_size(label, values, height=height, width=width)
    if classes is None:
        ids, names = values.astype(np.int64) @ np.array([1, 256, 65536]), {0: "background"}
    else:
        names = dict(classes.values())
        black = {} if (0, 0, 0) in classes else {(0, 0, 0): -1}
        ids = colours_to_indices(values, {**{c: number for c, (number, _) in classes.items()}, **black}, place=str(label))
    for number, area in zip(*np.unique(ids, return_counts=True), strict=True):
        name = names.get(int(number), "")
        if number < 0 or name == "background":
            continue
        if area < min_area:
            report.counts["below_min_area"] += 1
            continue
        yield mask_record_from_rle(encode_rle(ids == number), mask_id=int(number), annotator="colour_masks", name=name)
