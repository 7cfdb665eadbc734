"""What each stage wrote, in numbers: counted by the engine, or measured against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from data_engine.ledger import Counts
from data_engine.report.cycle_run import MIOU_KEYS, CycleRun, StageResult
from sam_train.errors import ShardError
from sam_train.masks import rle_total_pixels
from sam_train.records import ImageRecord, Rle
from sam_train.shards import Manifest, Sample, iterate_samples, load_manifest

DROPPED_PREFIX = "dropped/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """A line of the report, in the order of its JSON. None: not there yet, or nothing to divide by."""

    stage: str
    images: int | None
    masks_per_image: float | None
    clicks_per_mask: float | None
    seconds_per_mask: float | None
    mean_iou: float | None
    """Mean over the written masks of the best IoU with a true mask of the same image."""
    miou_at_1: float | None
    miou_at_3: float | None
    miou_at_5: float | None
    step: str
    promoted: bool | None
    masks: int | None
    masks_without_truth: int
    """Masks of images that the truth does not have: they are not in mean_iou."""
    dropped: dict[str, float]
    """Reason -> how often."""
    skipped: dict[str, int]
    """Reason -> images of the source that no shard holds."""
    counts: dict[str, float]
    """What else the engine counted, summed over the shards."""
    candidate: dict[str, float] | None
    """Held-out means of the model trained here, promoted or not."""
    left_out: bool
    """Whether nothing was done here, because the stage had spent its budget."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskMeasurements:
    """What a walk over the masks of a stage gives."""

    best_ious: np.ndarray
    """One for each mask of an image that the truth has."""
    num_without_truth: int
    shown: list[Sample]
    """The samples that were asked for, in the order written."""


Truth = Mapping[str, ImageRecord]


def read_ground_truth(shards: list[Path], keys: set[str]) -> dict[str, ImageRecord]:
    """Records of the truth for the images in `keys`."""
    return {sample.record.key: sample.record for sample in iterate_samples(shards) if sample.record.key in keys}


def measure_masks(shards: list[Path], truth: Truth, shown_keys: set[str]) -> MaskMeasurements:
    """Measure every mask of `shards` against the truth and keep the samples to show. Raises ShardError for a bad mask."""
    ious, without, shown = [np.zeros(0)], 0, []
    for sample in iterate_samples(shards):
        record = sample.record
        if record.key in truth:
            ious.append(best_ious(record, truth[record.key]))
        else:
            without += len(record.masks)
        if record.key in shown_keys:
            shown.append(sample)
    return MaskMeasurements(best_ious=np.concatenate(ious), num_without_truth=without, shown=shown)


def best_ious(record: ImageRecord, truth: ImageRecord) -> np.ndarray:
    """For each mask of `record` its best IoU with a mask of `truth`, 0 where the truth has none.

    Raises ShardError when the two are not of one size.
    """
    if not record.masks or not truth.masks:
        return np.zeros(len(record.masks))
    hw = [record.height, record.width]
    drawn = [_checked(mask.segmentation, hw, record.key) for mask in record.masks]
    true = [_checked(mask.segmentation, hw, record.key) for mask in truth.masks]
    return np.asarray(coco_mask.iou(drawn, true, [0] * len(true))).max(1)


def compute_stage_statistics(
    run: CycleRun, position: int, manifests: list[Manifest], masks: MaskMeasurements | None
) -> StageStatistics:
    """The line of stage `position` (from 0). `masks` is None when there is no truth to measure against."""
    stage = run.stages[position]
    counts = _counts(stage, manifests)
    images = sum(len(manifest.keys) for manifest in manifests) if manifests else None
    num_masks = sum(manifest.num_masks for manifest in manifests) if manifests else None
    trial, in_use = run.trial_of(stage), run.promoted_after(position)
    return StageStatistics(
        stage=stage.stage,
        images=images,
        masks_per_image=_ratio(None if num_masks is None else float(num_masks), images),
        clicks_per_mask=_ratio(counts.get("clicks"), num_masks),
        seconds_per_mask=_ratio(counts.get("seconds"), num_masks),
        mean_iou=float(masks.best_ious.mean()) if masks is not None and len(masks.best_ious) else None,
        **{key: in_use.evaluation.get(key) if in_use else None for key in MIOU_KEYS},
        step=stage.step,
        promoted=trial.promoted if trial else None,
        masks=num_masks,
        masks_without_truth=masks.num_without_truth if masks is not None else 0,
        dropped={k.removeprefix(DROPPED_PREFIX): v for k, v in counts.items() if k.startswith(DROPPED_PREFIX)},
        skipped=dict(sorted(Counter(reason for manifest in manifests for reason in manifest.skipped.values()).items())),
        counts={k: v for k, v in counts.items() if not k.startswith(DROPPED_PREFIX)},
        candidate=stage.evaluation() or (trial.evaluation if trial else None),
        left_out=bool(stage.why_left_out()),
    )


def load_manifests(stage: StageResult) -> list[Manifest]:
    """Manifests of the finished shards of a stage."""
    return [load_manifest(shard) for shard in stage.shards()]


def _counts(stage: StageResult, manifests: list[Manifest]) -> Counts:
    """All shards' counts added up. A name that a shard lacks is a thing that did not happen there."""
    # Nobody works in the fully automatic stage, so clicks that were never counted there are zero and no gap.
    nobody = stage.stage == "fully_automatic" and manifests
    total = Counts(dict.fromkeys(("clicks", "seconds"), 0.0) if nobody else {})
    for manifest in manifests:
        total.add(manifest.counts)
    return Counts(sorted((name, float(value)) for name, value in total.items()))


def _ratio(total: float | None, number: int | None) -> float | None:
    return total / number if total is not None and number else None


def _checked(rle: Rle, hw: list[int], key: str) -> Rle:
    # pycocotools compares two RLEs of different sizes without a word, and trusts the runs.
    if list(rle["size"]) != hw or rle_total_pixels(rle["counts"]) != hw[0] * hw[1]:
        raise ShardError(f"a mask is no RLE of the image's {hw}: truth and written shards differ in size", key=key)
    return {"size": hw, "counts": rle["counts"].encode("ascii")}
