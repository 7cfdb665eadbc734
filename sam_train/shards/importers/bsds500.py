"""BSDS500: photographs that five or more people each cut into segments."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.importers.file_pairing import load_image_or_raise, pairs_by_stem
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.keys import image_id_from_path, keys_from_paths

_HEADER_BYTES, _COMPRESSED = 128, 15
_MAX_UNPACKED_BYTES = 1 << 28

_NOT_READABLE = (
    MatReadError,
    OSError,
    NotImplementedError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    zlib.error,
    struct.error,
)
"""What scipy says of a file that is none, of version 7.3 or torn, and what comes of one with other things in it."""


def import_bsds500(
    images: Path, labels: Path, *, person: int = 0, min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Pairs `images/STEM.jpg` and `labels/STEM.mat` (groundTruth) to records and JPEG bytes, in name order.

    All people's segments are taken, in the order of people and then of segment numbers; `person`, from 1, takes one's. Each
    person's cover the picture, so masks of two people overlap; one that an earlier person drew to the pixel is left out and
    counted as "same_segment", one below `min_area` pixels as "below_min_area", a picture that `person` has not seen as
    "picture_without_person". Ids count from 1; the annotator of a mask's provenance is "bsds500/1", "bsds500/2", ...

    Raises ShardError, naming the file, for a picture without .mat or the reverse, a pair of two sizes, and a .mat that holds
    no segmentations.
    """
    counts = Counter() if counts is None else counts
    if person < 0:
        raise ShardError(f"--person counts from 1, 0 takes all; got {person}")
    pairs = pairs_by_stem(images, labels, ".mat", what="ground truth")
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (name, image, label) in zip(keys, pairs, strict=True):
        people = read_bsds_segmentations(label)
        if person > len(people):
            counts["picture_without_person"] += 1
            continue
        picture = load_image_or_raise(image, key=key)
        height, width = picture.image.shape[:2]
        for ids in people:
            check_matches_image_size(label, ids, height=height, width=width, key=key)
        masks = _masks(people, person, min_area, counts)
        yield ImageRecord(key=key, image_id=image_id_from_path(name), width=width, height=height, masks=masks), picture.jpeg


def read_bsds_segmentations(path: Path) -> list[np.ndarray]:
    """Every person's H x W map of segment numbers from 1, unsigned. Raises ShardError, naming the file, for another .mat."""
    data = path.read_bytes()
    try:
        _check_unpacked_size(data, path)
        truth = loadmat(BytesIO(data), variable_names=["groundTruth"])["groundTruth"]
        people = [person["Segmentation"][0, 0] for person in truth.ravel()]
    except _NOT_READABLE as error:
        name = type(error).__name__
        raise ShardError(f"{path} is no ground truth of BSDS500, a .mat with 'groundTruth': {name}: {error}") from error
    if not people or any(ids.ndim != 2 or ids.dtype.kind != "u" for ids in people):
        raise ShardError(f"{path}: expected one or more 'Segmentation', two-dimensional and of unsigned integers")
    return people


def _masks(people: list[np.ndarray], person: int, min_area: int, counts: Counter[str]) -> list[MaskRecord]:
    found: dict[str, MaskRecord] = {}
    for number, ids in enumerate(people, start=1):
        if person not in (0, number):
            continue
        for record in mask_records_from_id_map(ids, annotator=f"bsds500/{number}", min_area=min_area, counts=counts):
            runs = record.segmentation["counts"]
            if runs in found:
                counts["same_segment"] += 1
            else:
                found[runs] = replace(record, id=len(found) + 1)
    return list(found.values())


def _check_unpacked_size(data: bytes, path: Path) -> None:
    """Raise ShardError for a .mat whose compressed parts unpack to more than any ground truth has."""
    position, total = _HEADER_BYTES, 0
    while position + 8 <= len(data):
        kind, length = struct.unpack("<II", data[position : position + 8])
        part = data[position + 8 : position + 8 + length]
        total += len(zlib.decompressobj().decompress(part, _MAX_UNPACKED_BYTES)) if kind == _COMPRESSED else length
        if total >= _MAX_UNPACKED_BYTES:
            raise ShardError(f"{path} unpacks to {_MAX_UNPACKED_BYTES} bytes or more: no ground truth of BSDS500 does")
        position += 8 + length
