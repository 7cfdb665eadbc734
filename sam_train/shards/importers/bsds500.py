"""Import of BSDS500: photographs that five or more annotators each divided into segments."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.shards.importers.file_pairing import PairedFolders
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_records import mask_records_from_id_map
from sam_train.shards.importers.report import ImportReport

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


@importer(default_frame="upright")
def import_bsds500(
    images: Path,
    labels: Path,
    *,
    annotator: int = 0,
    image_suffix: str = "",
    label_suffix: str = "",
    min_area: int = 1,
    report: ImportReport,
) -> list[ImageItem]:
    """Import BSDS500: pairs images/STEM.jpg and labels/STEM.mat (groundTruth), in the order of names.

    The segments of all annotators are imported, in the order of annotators and segment numbers. Each annotator's segments cover
    the image, so masks of two annotators overlap; a mask that is identical to one of an earlier annotator is dropped and
    counted as "same_segment", an image without a segmentation by --annotator is left out and counted as
    "image_without_annotator". Ids count from 1; the provenance names the annotators "bsds500/1", "bsds500/2", ...

    Args:
        images: Folder of the images.
        labels: Folder of the ground truth, .mat files.
        annotator: Number of the only annotator to import, from 1; 0 imports all.

    Raises:
        ShardError: Names the file, for an image without .mat or a .mat without an image, a pair of different sizes, and a .mat
            without segmentations.
    """
    if annotator < 0:
        raise ShardError(f"--annotator is {annotator}: expected the number of an annotator from 1, or 0 for all")
    suffixes = {"image_suffix": image_suffix, "label_suffix": label_suffix}
    folders = PairedFolders(images, labels, what="ground truth", extensions=(".mat",), **suffixes)
    items = []
    for name, image, label in folders.pairs(report):
        with report.entry("image", str(label)):
            if annotator and annotator > len(read_bsds_segmentations(label)):
                report.counts["image_without_annotator"] += 1
                continue
            masks = partial(_masks, label, annotator=annotator, min_area=min_area, report=report)
            items.append(ImageItem(name=name, file=DiskFile(image), masks=masks, declared_size=partial(_size, label)))
    return items


def _size(label: Path) -> tuple[int, int]:
    height, width = read_bsds_segmentations(label)[0].shape
    return width, height


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


def _masks(label: Path, height: int, width: int, *, annotator: int, min_area: int, report: ImportReport) -> list[MaskRecord]:
    segmentations = read_bsds_segmentations(label)
    records: dict[str, MaskRecord] = {}
    for number, ids in enumerate(segmentations, start=1):
        check_matches_image_size(label, ids, height=height, width=width)
        if annotator not in (0, number):
            continue
        for record in mask_records_from_id_map(ids, annotator=f"bsds500/{number}", min_area=min_area, counts=report.counts):
            rle_counts = record.segmentation["counts"]
            if rle_counts in records:
                report.counts["same_segment"] += 1
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
