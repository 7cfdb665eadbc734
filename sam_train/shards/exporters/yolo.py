"""Export to YOLO's segmentation labels: one text file per image, one polygon per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from sam_train.rle import decode_rle
from sam_train.shards.class_names import UNNAMED_CLASS, ClassNumbering
from sam_train.shards.exporters.classes import number_classes
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings, simplify_ring
from sam_train.shards.tar_members import Sample


def export_yolo(
    samples: Iterable[Sample],
    folder: ExportFolder,
    counts: Counter[str],
    *,
    shards: Sequence[Path],
    tolerance_px: float = 0.0,
    names: Path | None = None,
) -> None:
    """Write the folders images and labels, with one text file per image, and data.yaml, as YOLO reads them.

    Each mask name becomes a class. Classes have the order of the imported data set, unused ones included, numbered from 0, or
    the numbers in --names; other names follow in alphabetical order. So exports of several splits of a data set agree. Masks
    without a name have the class "object".

    A line is one mask. Its polygon follows the edges of the pixels, so that filling it by pixel centres (pycocotools,
    `sam-data import yolo`) restores the mask exactly; six decimals suffice for that up to the largest JPEG. A mask with several
    parts or with holes becomes one polygon with bridges, which go forth and back on the same line, and is counted as
    "mask_with_bridges". Filled by the even-odd rule, as in pycocotools and OpenCV's fillPoly, holes stay open; readers that also
    draw the polygon's border, as fillPoly does, show a bridge as a line of one pixel. A mask without pixels is skipped and
    counted as "mask_without_pixels".

    One image is in memory at a time.

    Args:
        tolerance_px: Largest distance in pixels of a removed corner from the simplified polygon; 0 keeps polygons exact.
        names: File of class names (data.yaml, or text with one name per line) whose class numbers are used.

    Raises:
        ShardError: A mask has a name that is not in `names`.
    """
    classes = number_classes(shards, first=0, names=names, consecutive=True)
    for sample in samples:
        name = folder.add_image(sample.record, sample.jpeg)
        lines = [f"{number} {polygon}\n" for number, polygon in _polygons(sample, classes, tolerance_px, counts)]
        folder.write(f"labels/{name}.txt", "".join(lines).encode())
    description = {"train": "images", "val": "images", "names": classes.names or {0: UNNAMED_CLASS}}
    folder.write("data.yaml", msgspec.yaml.encode(description))


def _polygons(sample: Sample, classes: ClassNumbering, tolerance_px: float, counts: Counter[str]) -> Iterator[tuple[int, str]]:
    """Yield class number and polygon of each mask."""
    record = sample.record
    for mask in record.masks:
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
        rings = [simplify_ring(ring, tolerance_px) for ring in mask_to_rings(pixels)]
        if not rings:
            counts["mask_without_pixels"] += 1
            continue
        if len(rings) > 1:
            counts["mask_with_bridges"] += 1
        fractions = join_rings(rings) / np.array([record.width, record.height])
        number = classes.number_of(mask.name, place=f"{sample.shard}, {record.key}, mask {mask.id}")
        yield number, " ".join(f"{fraction:.6f}".rstrip("0").rstrip(".") for fraction in fractions.ravel())
