"""Shards to YOLO's segmentation labels: a text file a picture, an outline a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from sam_train.masks import decode_rle
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.outlines import joined, rings_of_mask, simplified
from sam_train.shards.members import Sample

_DATA_YAML = b"train: images\nval: images\nnames:\n  0: object\n"


def export_yolo(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str], *, tolerance_px: float = 0.0) -> None:
    """Samples to out/images, out/labels/NAME.txt and out/data.yaml, one image in memory at a time; the one class is 0, "object".

    A line is one mask. Outlines run along the edges of its pixels, so that filling them by pixel centres (pycocotools, our
    import) gives the mask back to the pixel; six decimals are enough for that up to the largest JPEG. A mask of several parts
    or with holes becomes one outline by bridges that go and return on the same line: filled by odd and even, as pycocotools
    and OpenCV's fillPoly do, holes stay open, though readers that also draw outlines, as fillPoly does, show a bridge as a
    line a pixel wide. They are counted as "mask_with_bridges".

    `tolerance_px` above 0 leaves corners out as long as none is farther than that from the new outline: smaller files, no longer
    exact. A mask without a pixel has no outline and is counted as "mask_without_pixels".
    """
    for sample in samples:
        name = folder.add_picture(sample.record, sample.jpeg)
        lines = [f"0 {outline}\n" for outline in _outlines(sample, tolerance_px, counts)]
        folder.write(f"labels/{name}.txt", "".join(lines).encode())
    folder.write("data.yaml", _DATA_YAML)


def _outlines(sample: Sample, tolerance_px: float, counts: Counter[str]) -> Iterator[str]:
    record = sample.record
    for mask in record.masks:
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
        rings = [simplified(ring, tolerance_px) for ring in rings_of_mask(pixels)]
        if not rings:
            counts["mask_without_pixels"] += 1
            continue
        if len(rings) > 1:
            counts["mask_with_bridges"] += 1
        fractions = joined(rings) / np.array([record.width, record.height])
        yield " ".join(f"{number:.6f}".rstrip("0").rstrip(".") for number in fractions.ravel())
