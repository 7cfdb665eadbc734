"""Comparison of the first and the last promoted model: predictions for the same click on the same held-out objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from data_engine.cycle_folder import PromotionRecord
from data_engine.report.cycle_run import CycleRun
from data_engine.report.mask_images import decode_mask
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.errors import ConfigError
from sam_train.inference import Predictor
from sam_train.masks import mask_iou
from sam_train.prompts import PromptSimulator
from sam_train.records import MaskRecord, Rle
from sam_train.rle import encode_rle
from sam_train.shards import Sample, decode_jpeg, expand_shards, iterate_samples
from sam_train.subsets import evenly_spaced_indices

NUM_SHOWN = 6
NUM_WORST = 6
MASKS_PER_IMAGE = 8
MIN_AREA_PX = 100
"""Smallest area of an object that is tried, as in the click protocol: smaller ones are not in mIoU@k either."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparedObject:
    """One held-out object, one click at its centre, and the prediction of each model for it."""

    sample: Sample
    target: Rle
    """Ground-truth mask of the object."""
    click_xy: tuple[float, float]
    """The click in pixels of the image."""
    predictions: tuple[Rle, ...]
    """Predicted masks, one per model, oldest first."""
    ious: tuple[float, ...]
    """IoU of each prediction with the target."""

    @property
    def gain(self) -> float:
        """IoU of the last model minus that of the first; with only one model its IoU."""
        return self.ious[-1] - self.ious[0] if len(self.ious) > 1 else self.ious[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Result of the comparison over all tried objects, and the objects to show."""

    steps: tuple[str, ...]
    """The steps that trained the models: first and last promoted, or one step if they are the same."""
    shown: list[ComparedObject]
    """Objects at evenly spaced ranks of `gain`, best first."""
    worst: list[ComparedObject]
    """The objects with the lowest IoU of the last model, worst first."""
    num_images: int
    num_objects: int
    num_better: int
    num_worse: int
    mean_ious: tuple[float, ...]
    """Mean IoU of each model over all objects."""


def compare_models(run: CycleRun, *, num_images: int, device: torch.device) -> Comparison:
    """Compare the models with one click on up to MASKS_PER_IMAGE objects of each of `num_images` held-out images.

    The images are spread evenly over the held-out shards. Raises ConfigError if no model was promoted yet, if a checkpoint
    is missing or was replaced, or if there is no held-out object to try.
    """
    records = _first_and_last_promoted(run)
    if run.heldout is None:
        raise ConfigError("the config names no corpus.heldout")
    samples = _evenly_spaced_samples(expand_shards(run.heldout), num_images)
    targets = [(sample, mask) for sample in samples for mask in _objects_to_try(sample)]
    if not targets:
        raise ConfigError(f"no object of at least {MIN_AREA_PX} pixels in {len(samples)} held-out images")
    by_model = [_predict_all(run.folder.path / record.checkpoint, samples, device) for record in records]
    objects = [
        ComparedObject(
            sample=sample,
            target=mask.segmentation,
            click_xy=predictions[0].click_xy,
            predictions=tuple(prediction.mask for prediction in predictions),
            ious=tuple(prediction.iou for prediction in predictions),
        )
        for (sample, mask), *predictions in zip(targets, *by_model, strict=True)
    ]
    return _summarise(records, objects, len(samples))


def representative_indices(gains: Sequence[float], count: int) -> list[int]:
    """Return up to `count` indices at evenly spaced ranks from the largest gain to the smallest, both included."""
    order = np.argsort(-np.asarray(gains, dtype=float), kind="stable")
    return [int(order[rank]) for rank in evenly_spaced_indices(len(order), count, at="ends")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prediction:
    click_xy: tuple[float, float]
    mask: Rle
    iou: float


def _first_and_last_promoted(run: CycleRun) -> list[PromotionRecord]:
    """Return the first and the last promoted model, or only one if they are the same."""
    promoted = [record for record in run.history if record.promoted]
    if not promoted:
        raise ConfigError("no model has been promoted yet")
    records = promoted[:1] if promoted[0].sha256 == promoted[-1].sha256 else [promoted[0], promoted[-1]]
    for record in records:
        checkpoint = run.folder.path / record.checkpoint
        if not checkpoint.is_file():
            raise ConfigError(f"the checkpoint of {record.step} is missing at {checkpoint}: restore it or train it again")
        if (sha256 := checkpoint_hash(checkpoint)) != record.sha256:
            hashes = f"its SHA-256 is {sha256[:12]}, expected {record.sha256[:12]}"
            raise ConfigError(f"{checkpoint} is not the model that was promoted: {hashes}")
    return records


def _evenly_spaced_samples(shards: list[Path], count: int) -> list[Sample]:
    """Return `count` evenly spaced samples. The shards are read twice, so that at most `count` samples are in memory."""
    total = sum(1 for _ in iterate_samples(shards))
    selected = set(evenly_spaced_indices(total, count, at="ends"))
    return [sample for index, sample in enumerate(iterate_samples(shards)) if index in selected]


def _objects_to_try(sample: Sample) -> list[MaskRecord]:
    large = [mask for mask in sample.record.masks if mask.area >= MIN_AREA_PX]
    return [large[i] for i in evenly_spaced_indices(len(large), MASKS_PER_IMAGE, at="ends")]


def _predict_all(checkpoint: Path, samples: list[Sample], device: torch.device) -> list[_Prediction]:
    predictor = Predictor(load_checkpoint(checkpoint).to(device))
    return [prediction for sample in samples for prediction in _predict_objects(predictor, sample)]


def _predict_objects(predictor: Predictor, sample: Sample) -> Iterator[_Prediction]:
    """Yield the best of the three predicted masks for a click at the centre of each object to try."""
    record, objects = sample.record, _objects_to_try(sample)
    if not objects:
        return
    targets = torch.from_numpy(np.stack([decode_mask(sample, mask.segmentation) for mask in objects])).to(predictor.device)
    predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key))
    simulator = PromptSimulator(num_corrections=0, num_mask_only_rounds=0, box_probability=0, click="center")
    index = torch.zeros(len(targets), dtype=torch.long, device=targets.device)
    prompts = simulator.first_prompts(targets, index, torch.Generator())
    masks = predictor.masks_to_image(predictor.predict_prompts(prompts, multimask_output=True).best().mask_logits)[:, 0]
    ious = mask_iou(masks, targets).tolist()
    for click, mask, iou in zip(prompts.points_xy[:, 0].tolist(), masks.cpu().numpy(), ious, strict=True):
        yield _Prediction(click_xy=(click[0], click[1]), mask=encode_rle(mask), iou=iou)


def _summarise(records: list[PromotionRecord], objects: list[ComparedObject], num_images: int) -> Comparison:
    gains = [item.gain for item in objects]
    changes = [after - before for item in objects for before, after in pairwise(item.ious)]
    return Comparison(
        steps=tuple(record.step for record in records),
        shown=[objects[index] for index in representative_indices(gains, NUM_SHOWN)],
        worst=sorted(objects, key=lambda item: item.ious[-1])[:NUM_WORST],
        num_images=num_images,
        num_objects=len(objects),
        num_better=sum(change > 0 for change in changes),
        num_worse=sum(change < 0 for change in changes),
        mean_ious=tuple(float(mean) for mean in np.mean([item.ious for item in objects], 0)),
    )
