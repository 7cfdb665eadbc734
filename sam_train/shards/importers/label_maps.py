"""Folders of pictures and of label maps, the form of DSB 2018 nuclei, cell tracking and most of microscopy."""

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
    """Pairs `images/STEM.*` and `labels/STEM.png` to records and JPEG bytes, in name order.

    A label map is a PNG of one channel with 8 or 16 bits: 0 is no instance, each other value one instance, whose value
    becomes the mask's id. It must have the size of its picture seen upright. Instances below `min_area` pixels are left
    out and counted as "below_min_area". A picture without instances yields a record without masks. `name` is what every
    instance shows, such as "nucleus".

    Raises ShardError, naming the file, for a picture without label map or the reverse, a pair of two sizes, or a file of
    a pair that cannot be read: an import is whole or stops.
    """
    counts = Counter() if counts is None else counts
    shown = parse_class_name(name, place="--name")
    pairs = pairs_by_stem(images, labels, ".png", what="label map")
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (file, image, label) in zip(keys, pairs, strict=True):
        picture = load_image_or_raise(image, key=key)
        height, width = picture.image.shape[:2]
        ids = read_label_map(label)
        check_matches_image_size(label, ids, height=height, width=width, key=key)
        masks = mask_records_from_id_map(ids, annotator="label_maps", min_area=min_area, counts=counts, name_of=lambda _: shown)
        yield ImageRecord(key=key, image_id=image_id_from_path(file), width=width, height=height, masks=masks), picture.jpeg


def check_matches_image_size(path: Path, ids: np.ndarray, *, height: int, width: int, key: str) -> None:
    """Raise ShardError, naming the file, unless what was read from it has its upright picture's size."""
    if ids.shape[:2] != (height, width):
        message = f"{path} is {ids.shape[1]} x {ids.shape[0]}, its picture seen upright {width} x {height}"
        raise ShardError(f"{message}: they must be of one size", key=key)


def read_label_map(path: Path) -> np.ndarray:
    """A PNG of instance ids to H x W uint8 or uint16; palette PNGs give their indices.

    Raises ShardError for anything else, naming the file.
    """
    return read_png(path, ("1", "L", "P", "I;16"), expected="a label map is a PNG of one 8 or 16 bit channel")


def read_png(path: Path, modes: tuple[str, ...], *, expected: str) -> np.ndarray:
    """A PNG's values, uint8 or uint16, H x W or H x W x channels. `modes` are Pillow's ("I;16" with what follows it).

    Raises ShardError for anything else, naming the file and what is `expected`.
    """
    try:
        header = open_image_header(path.read_bytes(), name=path.name)
        if header.format != "PNG" or not (header.mode in modes or ("I;16" in modes and header.mode.startswith("I;16"))):
            raise ShardError(f"{path} is {header.format} of mode {header.mode}: {expected}")
        header.load()
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} does not decode: {error}") from error
    values = np.asarray(header)
    return values.astype(np.uint16 if values.dtype.itemsize == 2 else np.uint8)
