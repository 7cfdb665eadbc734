"""Import of BSDS500: photographs that five or more annotators each divided into segments."""

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
_MAX_DECOMPRESSED_BYTES = 1 << 28

_READ_ERRORS = (
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
"""Exceptions for a file that is not a .mat, has version 7.3, is truncated or corrupt, or has other content."""


def import_bsds500(
    images: Path, labels: Path, *, annotator: int = 0, min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import BSDS500: pairs images/STEM.jpg and labels/STEM.mat (groundTruth), in the order of names.

    The segments of all annotators are imported, in the order of annotators and segment numbers. Each annotator's segments cover
    the image, so masks of two annotators overlap; a mask that is identical to one of an earlier annotator is dropped and
    counted as "same_segment", one below --min-area as "below_min_area", an image without a segmentation by --annotator as
    "picture_without_person". Ids count from 1; the provenance names the annotators "bsds500/1", "bsds500/2", ...

    Args:
        images: Folder of the images.
        labels: Folder of the ground truth, .mat files.
        annotator: Number of the only annotator to import, from 1; 0 imports all.
        min_area: Area in pixels below which a mask is dropped.

    Raises:
        ShardError: Names the file, for an image without .mat or a .mat without an image, a pair of different sizes, and a .mat
            without segmentations.
    """
    counts = Counter() if counts is None else counts
    if annotator < 0:
        raise ShardError(f"--annotator is {annotator}: expected the number of an annotator from 1, or 0 for all")
    pairs = pairs_by_stem(images, labels, ".mat", what="ground truth")
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (name, image, label) in zip(keys, pairs, strict=True):
        segmentations = read_bsds_segmentations(label)
        if annotator > len(segmentations):
            counts["picture_without_person"] += 1
            continue
        decoded = load_image_or_raise(image, key=key)
        height, width = decoded.image.shape[:2]
        for ids in segmentations:
            check_matches_image_size(label, ids, height=height, width=width, key=key)
        masks = _masks(segmentations, annotator, min_area, counts)
        yield ImageRecord(key=key, image_id=image_id_from_path(name), width=width, height=height, masks=masks), decoded.jpeg


def read_bsds_segmentations(path: Path) -> list[np.ndarray]:
    """Return each annotator's H x W map of segment numbers from 1, unsigned. Raises ShardError, naming the file, if invalid."""
    data = path.read_bytes()
    try:
        _check_decompressed_size(data, path)
        ground_truth = loadmat(BytesIO(data), variable_names=["groundTruth"])["groundTruth"]
        segmentations = [entry["Segmentation"][0, 0] for entry in ground_truth.ravel()]
    except _READ_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ShardError(f"{path} is not a ground truth of BSDS500, a .mat with 'groundTruth': {reason}") from error
    if not segmentations or any(ids.ndim != 2 or ids.dtype.kind != "u" for ids in segmentations):
        raise ShardError(f"{path}: expected one or more 'Segmentation', two-dimensional and of unsigned integers")
    return segmentations


def _masks(segmentations: list[np.ndarray], annotator: int, min_area: int, counts: Counter[str]) -> list[MaskRecord]:
    records: dict[str, MaskRecord] = {}
    for number, ids in enumerate(segmentations, start=1):
        if annotator not in (0, number):
            continue
        for record in mask_records_from_id_map(ids, annotator=f"bsds500/{number}", min_area=min_area, counts=counts):
            rle_counts = record.segmentation["counts"]
            if rle_counts in records:
                counts["same_segment"] += 1
            else:
                records[rle_counts] = replace(record, id=len(records) + 1)
    return list(records.values())


def _check_decompressed_size(data: bytes, path: Path) -> None:
    """Raise ShardError for a .mat whose compressed elements decompress to more than any ground truth has."""
    position, total = _HEADER_BYTES, 0
    while position + 8 <= len(data):
        kind, length = struct.unpack("<II", data[position : position + 8])
        element = data[position + 8 : position + 8 + length]
        total += len(zlib.decompressobj().decompress(element, _MAX_DECOMPRESSED_BYTES)) if kind == _COMPRESSED else length
        if total >= _MAX_DECOMPRESSED_BYTES:
            raise ShardError(f"{path} decompresses to {_MAX_DECOMPRESSED_BYTES} bytes or more: not a ground truth of BSDS500")
        position += 8 + length
