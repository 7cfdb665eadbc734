"""Import of folders of images and label maps, the format of DSB 2018 nuclei, cell tracking and most microscopy data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.image_io import open_image_header
from sam_train.shards.importers.file_pairing import load_image_or_raise, pairs_by_stem
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.keys import image_id_from_path, keys_from_paths


def import_label_maps(
    images: Path, labels: Path, *, name: str = "", min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import pairs of an image and a label map, images/STEM.* and labels/STEM.png, in the order of names.

    A label map is a PNG with one channel of 8 or 16 bits: 0 is background, every other value is one instance and becomes the id
    of its mask. It must have the size of the upright image. Instances below --min-area are dropped and counted as
    "below_min_area". An image without instances becomes a record without masks.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        name: Class name of every instance, such as "nucleus".
        min_area: Area in pixels below which an instance is dropped.

    Raises:
        ShardError: Names the file, for an image without a label map or the reverse, a pair of different sizes, or a file that
            cannot be read.
    """
    counts = Counter() if counts is None else counts
    class_name = parse_class_name(name, place="--name")
    pairs = pairs_by_stem(images, labels, ".png", what="label map")
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (file, image, label) in zip(keys, pairs, strict=True):
        decoded = load_image_or_raise(image, key=key)
        height, width = decoded.image.shape[:2]
        ids = read_label_map(label)
        check_matches_image_size(label, ids, height=height, width=width, key=key)
        masks = mask_records_from_id_map(
            ids, annotator="label_maps", min_area=min_area, counts=counts, name_of=lambda _: class_name
        )
        yield ImageRecord(key=key, image_id=image_id_from_path(file), width=width, height=height, masks=masks), decoded.jpeg


def check_matches_image_size(path: Path, ids: np.ndarray, *, height: int, width: int, key: str) -> None:
    """Raise ShardError, naming the label file, unless its map has the size of the upright image."""
    if ids.shape[:2] != (height, width):
        message = f"{path} is {ids.shape[1]} x {ids.shape[0]}, its upright image is {width} x {height}"
        raise ShardError(f"{message}: the sizes must agree", key=key)


def read_label_map(path: Path) -> np.ndarray:
    """Read a PNG of instance ids: H x W uint8 or uint16; the values of a palette PNG are its indices.

    Raises ShardError, naming the file, for any other file.
    """
    return read_png(path, ("1", "L", "P", "I;16"), expected="a label map is a PNG of one 8 or 16 bit channel")


def read_png(path: Path, modes: tuple[str, ...], *, expected: str) -> np.ndarray:
    """Read the values of a PNG, uint8 or uint16, H x W or H x W x channels.

    `modes` are the accepted Pillow modes ("I;16" stands for all modes that begin with it). Raises ShardError, naming the file and
    what is `expected`, for any other file.
    """
    try:
        header = open_image_header(path.read_bytes(), name=path.name)
        if header.format != "PNG" or not (header.mode in modes or ("I;16" in modes and header.mode.startswith("I;16"))):
            raise ShardError(f"{path} is {header.format} with mode {header.mode}: {expected}")
        header.load()
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} does not decode: {error}") from error
    values = np.asarray(header)
    return values.astype(np.uint16 if values.dtype.itemsize == 2 else np.uint8)
