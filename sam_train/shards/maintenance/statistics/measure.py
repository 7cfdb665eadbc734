"""Histograms of the masks in shards. JPEGs are not read: all measures come from the records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.maintenance.findings import printable
from sam_train.shards.maintenance.parallel import Advance
from sam_train.shards.maintenance.rle_geometry import rle_to_column_runs
from sam_train.shards.maintenance.tar_recovery import read_span, scan_tar
from sam_train.shards.maintenance.validate import MAX_MEMBER_BYTES
from sam_train.shards.tar_members import open_local_shard

HEAT_SIDE = 64
"""Number of rows and of columns of the map of mask centres."""
NUM_BINS = 100
"""Bins of a histogram over 0..1; values outside are counted in the first or last bin."""
MEASURES = ("relative_size", "concavity", "predicted_iou", "stability_score")
"""Measures of a mask, all 0..1: sqrt(mask area / image area), 1 - mask area / area of its convex hull, the two scores."""
MAX_STAGES = 40
NO_PROVENANCE = "no provenance"


@dataclass(slots=True, eq=False)
class StageCounts:
    """Number of masks of one stage of the engine, and the time that they took."""

    num_masks: int = 0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Statistics:
    """Counts over any number of images, which `add` accumulates."""

    num_images: int = 0
    num_pixels: int = 0
    masks_per_image: Counter[int] = field(default_factory=Counter)
    """Number of masks -> number of images with so many."""
    histograms: dict[str, np.ndarray] = field(default_factory=lambda: {name: np.zeros(NUM_BINS, np.int64) for name in MEASURES})
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))
    """Sum of each measure over all masks, for exact means."""
    centres: np.ndarray = field(default_factory=lambda: np.zeros((HEAT_SIDE, HEAT_SIDE), np.int64))
    """Number of masks by their centre of mass, in images scaled to a square: row, column."""
    stages: dict[str, StageCounts] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> number of shards, samples or masks that could not be counted."""

    @property
    def num_masks(self) -> int:
        """Number of counted masks."""
        return int(self.centres.sum())

    def mean(self, measure: str) -> float | None:
        """Return the mean of a measure over the masks that have it, None if none has: imported masks are rated by no model."""
        count = int(self.histograms[measure].sum())
        return self.totals[measure] / count if count else None

    def add(self, other: Statistics) -> None:
        """Add the counts of `other`."""
        self.num_images += other.num_images
        self.num_pixels += other.num_pixels
        self.masks_per_image += other.masks_per_image
        self.left_out += other.left_out
        self.centres += other.centres
        for name in MEASURES:
            self.histograms[name] += other.histograms[name]
            self.totals[name] += other.totals[name]
        for name, counts in other.stages.items():
            stage = self.stages.setdefault(name, StageCounts())
            stage.num_masks += counts.num_masks
            stage.seconds += counts.seconds

    def count_image(self, record: ImageRecord) -> None:
        """Count an image and its masks. Empty masks and those with an invalid RLE are counted in `left_out` instead."""
        counted = [self._count_mask(mask, record) for mask in record.masks]
        self.num_images += 1
        self.num_pixels += record.width * record.height
        self.masks_per_image[sum(counted)] += 1

    def _count_mask(self, mask: MaskRecord, record: ImageRecord) -> bool:
        try:
            segments = rle_to_column_runs(mask.segmentation, height=record.height, width=record.width, key=record.key)
        except ShardError:
            self.left_out["masks with an invalid RLE"] += 1
            return False
        if not (area := segments.area()):
            self.left_out["masks without a pixel"] += 1
            return False
        relative_size = float(np.sqrt(area / (record.width * record.height)))
        values = (relative_size, 1 - area / segments.hull_area(), mask.predicted_iou, mask.stability_score)
        measured = MEASURES if _is_rated(mask) else MEASURES[:2]
        for measure, value in zip(measured, values, strict=False):
            self.histograms[measure][min(int(min(max(value, 0.0), 1.0) * NUM_BINS), NUM_BINS - 1)] += 1
            self.totals[measure] += value
        x, y = segments.centre_xy()
        self.centres[int(y / record.height * HEAT_SIDE), int(x / record.width * HEAT_SIDE)] += 1
        name = printable(mask.provenance.stage if mask.provenance else NO_PROVENANCE, 60)
        stage = self.stages.setdefault(name if name in self.stages or len(self.stages) < MAX_STAGES else "others", StageCounts())
        stage.num_masks += 1
        stage.seconds += mask.provenance.seconds if mask.provenance else 0.0
        return True


def _is_rated(mask: MaskRecord) -> bool:
    """Return whether a model rated the mask; an imported mask without scores has 1 for both."""
    is_imported = mask.provenance is not None and mask.provenance.stage == "import"
    return not is_imported or (mask.predicted_iou, mask.stability_score) != (1.0, 1.0)


def measure_shard(shard: Path, advance: Advance) -> Statistics:
    """Measure all valid samples of a shard; the others are counted in `left_out`."""
    scanned, found, position = scan_tar(shard), Statistics(), 0
    whole = scanned.complete_keys()
    found.left_out["damaged regions of tars"] += len(scanned.damaged_regions)
    found.left_out["samples without JPEG, JSON or a valid name"] += len(scanned.spans) - len(whole)
    with open_local_shard(shard) as stream:
        for key in whole:
            span = scanned.spans[key]["json"][-1]
            try:
                if span.length > MAX_MEMBER_BYTES:
                    raise ShardError("the JSON is larger than that of any sample", shard=str(shard), key=key)
                found.count_image(ImageRecord.from_json(read_span(stream, span), key=key, shard=str(shard)))
            except ShardError:
                found.left_out["samples with an invalid record"] += 1
            advance(max(span.offset + span.length - position, 0))
            position = max(span.offset + span.length, position)
    advance(shard.stat().st_size - position)
    found.left_out = +found.left_out
    return found
