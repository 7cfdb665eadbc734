"""Before and after: the same click on the same held-out objects, answered by the first promoted model and by the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from data_engine.report.cycle_run import CycleRun, PromotionRecord
from data_engine.report.mask_images import decode_mask
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.errors import ConfigError
from sam_train.inference import Predictor
from sam_train.masks import encode_rle, mask_iou
from sam_train.prompts import PromptSimulator
from sam_train.records import MaskRecord, Rle
from sam_train.shards import Sample, decode_jpeg, expand_shards, iterate_samples
from sam_train.subsets import evenly_spaced_indices

NUM_SHOWN = 6
NUM_WORST = 6
MASKS_PER_IMAGE = 8
MIN_AREA_PX = 100  # as the click protocol measures: what is smaller is not in mIoU@k either


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparedObject:
    """One held-out object, one click in its middle, and what each model made of it."""

    sample: Sample
    target: Rle
    click_xy: tuple[float, float]
    answers: tuple[Rle, ...]
    """One for each model, oldest first."""
    ious: tuple[float, ...]

    @property
    def gain(self) -> float:
        """IoU of the last model less that of the first; with one model its IoU."""
        return self.ious[-1] - self.ious[0] if len(self.ious) > 1 else self.ious[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Objects to show, best gain first, out of all that were tried."""

    steps: tuple[str, ...]
    """The steps that made the models: first and last promoted, or one when they are the same."""
    shown: list[ComparedObject]
    worst: list[ComparedObject]
    """Those of which the last model made least, worst first."""
    num_images: int
    num_objects: int
    num_better: int
    num_worse: int
    mean_ious: tuple[float, ...]


def compare(run: CycleRun, *, num_images: int, device: torch.device) -> Comparison:
    """One click on up to MASKS_PER_IMAGE objects of each of `num_images` images, spread evenly over the held-out shards.

    Raises ConfigError when the run has no promoted model yet, a checkpoint is gone or was replaced, or there is no
    held-out object to try.
    """
    trials = _first_and_last(run)
    if run.heldout is None:
        raise ConfigError("the config names no corpus.heldout")
    samples = _spread(expand_shards(run.heldout), num_images)
    targets = [(sample, mask) for sample in samples for mask in _objects(sample)]
    if not targets:
        raise ConfigError(f"no object of at least {MIN_AREA_PX} pixels in {len(samples)} held-out images")
    answers = [_answer_all(Predictor(load_checkpoint(trial.checkpoint).to(device)), samples) for trial in trials]
    objects = [
        ComparedObject(
            sample=sample,
            target=mask.segmentation,
            click_xy=found[0].click_xy,
            answers=tuple(answer.mask for answer in found),
            ious=tuple(answer.iou for answer in found),
        )
        for (sample, mask), *found in zip(targets, *answers, strict=True)
    ]
    return _summary(trials, objects, len(samples))


def representative(gains: Sequence[float], count: int) -> list[int]:
    """Indices at evenly spaced ranks from the largest gain to the smallest, both included, each once."""
    order = np.argsort(-np.asarray(gains, dtype=float), kind="stable")
    return [int(order[rank]) for rank in evenly_spaced_indices(len(order), count, at="ends")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    click_xy: tuple[float, float]
    mask: Rle
    iou: float


def _first_and_last(run: CycleRun) -> list[PromotionRecord]:
    promoted = [trial for trial in run.history if trial.promoted]
    if not promoted:
        raise ConfigError("no model has been promoted yet")
    chosen = promoted[:1] if promoted[0].sha256 == promoted[-1].sha256 else [promoted[0], promoted[-1]]
    for trial in chosen:
        if not trial.checkpoint.is_file():
            raise ConfigError(f"the checkpoint of {trial.step} is not at {trial.checkpoint}: bring it back or train it again")
        if (found := checkpoint_hash(trial.checkpoint)) != trial.sha256:
            hashes = f"its SHA-256 is {found[:12]}, expected {trial.sha256[:12]}"
            raise ConfigError(f"{trial.checkpoint} is not the model that was promoted: {hashes}")
    return chosen


def _spread(shards: list[Path], count: int) -> list[Sample]:
    """`count` samples at even distances. The shards are read twice, so that never more than `count` are held."""
    total = sum(1 for _ in iterate_samples(shards))
    wanted = set(evenly_spaced_indices(total, count, at="ends"))
    return [sample for index, sample in enumerate(iterate_samples(shards)) if index in wanted]


def _objects(sample: Sample) -> list[MaskRecord]:
    large = [mask for mask in sample.record.masks if mask.area >= MIN_AREA_PX]
    return [large[i] for i in evenly_spaced_indices(len(large), MASKS_PER_IMAGE, at="ends")]


def _answer_all(predictor: Predictor, samples: list[Sample]) -> list[_Answer]:
    return [answer for sample in samples for answer in _answers(predictor, sample)]


def _answers(predictor: Predictor, sample: Sample) -> Iterator[_Answer]:
    record, objects = sample.record, _objects(sample)
    if not objects:
        return
    targets = torch.from_numpy(np.stack([decode_mask(sample, mask.segmentation) for mask in objects])).to(predictor.device)
    predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key))
    simulator = PromptSimulator(num_corrections=0, num_empty_rounds=0, box_probability=0, click="center")
    index = torch.zeros(len(targets), dtype=torch.long, device=targets.device)
    prompts = simulator.first_prompts(targets, index, torch.Generator())
    masks = predictor.masks_to_image(predictor.predict(prompts, multimask_output=True).best().mask_logits)[:, 0]
    ious = mask_iou(masks, targets).tolist()
    for click, mask, iou in zip(prompts.points_xy[:, 0].tolist(), masks.cpu().numpy(), ious, strict=True):
        yield _Answer(click_xy=(click[0], click[1]), mask=encode_rle(mask), iou=iou)


def _summary(trials: list[PromotionRecord], objects: list[ComparedObject], num_images: int) -> Comparison:
    gains = [item.gain for item in objects]
    changes = [b - a for item in objects for a, b in pairwise(item.ious)]
    return Comparison(
        steps=tuple(trial.step for trial in trials),
        shown=[objects[index] for index in representative(gains, NUM_SHOWN)],
        worst=sorted(objects, key=lambda item: item.ious[-1])[:NUM_WORST],
        num_images=num_images,
        num_objects=len(objects),
        num_better=sum(change > 0 for change in changes),
        num_worse=sum(change < 0 for change in changes),
        mean_ious=tuple(float(mean) for mean in np.mean([item.ious for item in objects], 0)),
    )
