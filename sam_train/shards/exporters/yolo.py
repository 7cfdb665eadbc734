"""Shards to YOLO's segmentation labels: a text file a picture, an outline a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from sam_train.masks import decode_rle
from sam_train.shards.class_names import UNNAMED_CLASS, ClassNumbering, read_class_names
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings, simplify_ring
from sam_train.shards.tar_members import Sample


def export_yolo(
    samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str], *, tolerance_px: float = 0.0, names: Path | None = None
) -> None:
    """Samples to out/images, out/labels/NAME.txt and out/data.yaml, one image in memory at a time.

    Each name that masks have is a class, numbered from 0 as they come; those without a name are of one called "object". With
    `names`, a data.yaml or a text with a name a line, classes have the numbers that they have there.

    A line is one mask. Outlines run along the edges of its pixels, so that filling them by pixel centres (pycocotools, our
    import) gives the mask back to the pixel; six decimals are enough for that up to the largest JPEG. A mask of several parts
    or with holes becomes one outline by bridges that go and return on the same line: filled by odd and even, as pycocotools
    and OpenCV's fillPoly do, holes stay open, though readers that also draw outlines, as fillPoly does, show a bridge as a
    line a pixel wide. They are counted as "mask_with_bridges".

    `tolerance_px` above 0 leaves corners out as long as none is farther than that from the new outline: smaller files, no longer
    exact. A mask without a pixel has no outline and is counted as "mask_without_pixels".

    Raises ShardError for a name that `names` lacks.
    """
    classes = ClassNumbering(first=0, given=None if names is None else read_class_names(names))
    for sample in samples:
        name = folder.add_image(sample.record, sample.jpeg)
        lines = [f"{number} {outline}\n" for number, outline in _outlines(sample, classes, tolerance_px, counts)]
        folder.write(f"labels/{name}.txt", "".join(lines).encode())
    description = {"train": "images", "val": "images", "names": classes.names or {0: UNNAMED_CLASS}}
    folder.write("data.yaml", msgspec.yaml.encode(description))


def _outlines(sample: Sample, classes: ClassNumbering, tolerance_px: float, counts: Counter[str]) -> Iterator[tuple[int, str]]:
    """Class and corners of each mask."""
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
        number = classes.take(mask.name, place=f"{sample.shard}, {record.key}, mask {mask.id}")
        yield number, " ".join(f"{fraction:.6f}".rstrip("0").rstrip(".") for fraction in fractions.ravel())
