"""Statistics of the masks that each stage wrote: counted by the engine, or measured against the ground truth."""

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
from sam_train.records import ImageRecord, Rle
from sam_train.rle import rle_total_pixels
from sam_train.shards import Manifest, Sample, iterate_samples, load_manifest

DROPPED_PREFIX = "dropped/"
RENAMED_COUNTS = {"dropped/pred_iou": "dropped/predicted_iou"}
"""Counts that manifests of earlier versions hold under another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatistics:
    """One row of the stage table. Fields have the names and the order of report.json.

    None means that the number does not exist yet, or that its denominator is 0.
    """

    stage: str
    images: int | None
    masks_per_image: float | None
    clicks_per_mask: float | None
    seconds_per_mask: float | None
    mean_iou: float | None
    """Best IoU of a written mask with a ground-truth mask of the same image, averaged over the written masks."""
    miou_at_1: float | None
    """Held-out mIoU after one click, of the model that is promoted after the stage."""
    miou_at_3: float | None
    miou_at_5: float | None
    step: str
    promoted: bool | None
    masks: int | None
    masks_without_truth: int
    """Masks of images without ground truth, which `mean_iou` does not include."""
    dropped: dict[str, float]
    """Number of dropped masks by reason."""
    skipped: dict[str, int]
    """Number of source images that no shard holds, by reason."""
    counts: dict[str, float]
    """All other counts of the engine, summed over the shards."""
    candidate: dict[str, float] | None
    """Held-out means of the model that was trained in this step, promoted or not."""
    left_out: bool
    """True if the step was skipped because the budget of its stage was spent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskMeasurements:
    """Measurements of the masks of a stage."""

    best_ious: np.ndarray
    """Best IoU with a ground-truth mask, one value per mask of an image with ground truth."""
    num_without_truth: int
    """Number of masks of images without ground truth."""
    shown: list[Sample]
    """The requested samples, in the order in which they were written."""


GroundTruth = Mapping[str, ImageRecord]
"""Records with ground-truth masks by image key."""


def read_ground_truth(shards: list[Path], keys: set[str]) -> dict[str, ImageRecord]:
    """Return the ground-truth records of the images in `keys`, by image key."""
    return {sample.record.key: sample.record for sample in iterate_samples(shards) if sample.record.key in keys}


def measure_masks(shards: list[Path], ground_truth: GroundTruth, shown_keys: set[str]) -> MaskMeasurements:
    """Compare every mask of `shards` with the ground truth, and keep the samples in `shown_keys`.

    Raises ShardError for an invalid mask.
    """
    ious, num_without_truth, shown = [np.zeros(0)], 0, []
    for sample in iterate_samples(shards):
        record = sample.record
        if record.key in ground_truth:
            ious.append(best_ious(record, ground_truth[record.key]))
        else:
            num_without_truth += len(record.masks)
        if record.key in shown_keys:
            shown.append(sample)
    return MaskMeasurements(best_ious=np.concatenate(ious), num_without_truth=num_without_truth, shown=shown)


def best_ious(record: ImageRecord, ground_truth: ImageRecord) -> np.ndarray:
    """Return the best IoU of each mask of `record` with a mask of `ground_truth`, 0 if that has none.

    Raises ShardError if the image sizes of the two differ.
    """
    if not record.masks or not ground_truth.masks:
        return np.zeros(len(record.masks))
    hw = [record.height, record.width]
    written = [_checked_rle(mask.segmentation, hw, record.key) for mask in record.masks]
    expected = [_checked_rle(mask.segmentation, hw, record.key) for mask in ground_truth.masks]
    return np.asarray(coco_mask.iou(written, expected, [0] * len(expected))).max(1)


def compute_stage_statistics(
    run: CycleRun, position: int, manifests: list[Manifest], masks: MaskMeasurements | None
) -> StageStatistics:
    """Return the statistics of stage `position` (from 0). `masks` is None if there is no ground truth."""
    stage = run.stages[position]
    counts = _sum_counts(stage, manifests)
    images = sum(len(manifest.keys) for manifest in manifests) if manifests else None
    num_masks = sum(manifest.num_masks for manifest in manifests) if manifests else None
    record, in_use = run.record_of(stage), run.promoted_after(position)
    means = in_use.means() if in_use else {}
    return StageStatistics(
        stage=stage.stage,
        images=images,
        masks_per_image=_ratio(None if num_masks is None else float(num_masks), images),
        clicks_per_mask=_ratio(counts.get("clicks"), num_masks),
        seconds_per_mask=_ratio(counts.get("seconds"), num_masks),
        mean_iou=float(masks.best_ious.mean()) if masks is not None and len(masks.best_ious) else None,
        **{key: means.get(key) for key in MIOU_KEYS},
        step=stage.step,
        promoted=record.promoted if record else None,
        masks=num_masks,
        masks_without_truth=masks.num_without_truth if masks is not None else 0,
        dropped={k.removeprefix(DROPPED_PREFIX): v for k, v in counts.items() if k.startswith(DROPPED_PREFIX)},
        skipped=dict(sorted(Counter(reason for manifest in manifests for reason in manifest.skipped.values()).items())),
        counts={k: v for k, v in counts.items() if not k.startswith(DROPPED_PREFIX)},
        candidate=stage.evaluation() or (record.means() if record else None),
        left_out=stage.folder.is_skipped(),
    )


def load_manifests(stage: StageResult) -> list[Manifest]:
    """Return the manifests of the finished shards of a stage."""
    return [load_manifest(shard) for shard in stage.shards()]


def _sum_counts(stage: StageResult, manifests: list[Manifest]) -> Counts:
    """Return the counts summed over all shards. A count that a manifest lacks is 0 there."""
    # There is no annotator in the fully automatic stage, so its clicks and seconds are 0 and not missing.
    automatic = stage.stage == "fully_automatic" and manifests
    total = Counts(dict.fromkeys(("clicks", "seconds"), 0.0) if automatic else {})
    for manifest in manifests:
        for name, value in manifest.counts.items():
            total.add({RENAMED_COUNTS.get(name, name): value})
    return Counts(sorted((name, float(value)) for name, value in total.items()))


def _ratio(total: float | None, number: int | None) -> float | None:
    return total / number if total is not None and number else None


def _checked_rle(rle: Rle, hw: list[int], key: str) -> Rle:
    # pycocotools compares two RLEs of different sizes without an error, and does not check the run lengths.
    if list(rle["size"]) != hw or rle_total_pixels(rle["counts"]) != hw[0] * hw[1]:
        message = f"a mask is not an RLE of the image's size {hw}: ground truth and written shards differ in size"
        raise ShardError(message, key=key)
    return {"size": hw, "counts": rle["counts"].encode("ascii")}
