"""The training step that all modules share: passes, seeding, gradient reduction, clipping, EMA, logging, preemption."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from sam_train.checkpoint import RUN_KEY
from sam_train.model import Sam
from sam_train.optim import OptimizerFactory
from sam_train.prompts.rng import hash_seed
from sam_train.structures import Batch
from sam_train.training.ema import WeightEMA
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.gradients import clip_gradients, divide_gradients, sum_gradients
from sam_train.training.nan_guard import check_finite
from sam_train.training.schedule_change import ScheduleChange, change_of_length, stored_schedule
from sam_train.training.step_metrics import ReducedStepMetrics, StepMetricsAccumulator, rank_and_world_size
from sam_train.training.step_rng import RngStream, draw_drop_paths, image_seeds

log_rank_zero = rank_zero_only(logging.getLogger("sam_train").info)
"""Logs a message in the process of rank 0 only."""


class StepModule(LightningModule, ABC):
    """Base class of the trained modules. A subclass implements `backpropagate` and the validation.

    The loss of a step is a mean over all of its masks (or images), on all devices and in all passes: each device
    backpropagates sums, which are added over the devices once per step and divided by the number of masks.

    frozen_encoder: computes the image embeddings if the image encoder is not trained; None if it is.
    gradient_clip: maximum gradient norm; none in SAM 1, 0.1 in SAM 2. None disables clipping.
    compile_encoder: run the image encoder through torch.compile. Compilation takes about half a minute; on the one CPU it was
        tried on, the gain was below a tenth; it has not been tried on a GPU.
    ema_decay: decay of the EMA of the weights, which validation measures and model.pt holds (WeightEMA). None disables it.
    images_per_pass: maximum number of images that a device processes at once; the rest of its share of a step follows in further
        passes. None processes all at once. It changes the memory, not the result.
    seed: seed of all random decisions of the step (`step_rng`).
    Raises ValueError if images_per_pass is below 1 or ema_decay is outside (0, 1).
    """

    progress_metrics: ClassVar[tuple[tuple[str, str], ...]]
    """The metrics that are printed during training: (printed name, name in the log without "train/")."""

    default_monitor: ClassVar[str] = "val/miou_at_1"
    """The validation metric by which models are compared; higher is better."""

    metric_names: ClassVar[tuple[str, ...]]
    """Names of the sums that `backpropagate` adds to the step's metrics; the first is "loss"."""

    mean_over: ClassVar[str] = "masks"
    """The count over which losses and gradients are means: "masks" or "images"."""

    def __init__(
        self,
        model: Sam,
        optimizer: OptimizerFactory,
        *,
        frozen_encoder: FrozenEncoder | None = None,
        gradient_clip: float | None = None,
        compile_encoder: bool = False,
        ema_decay: float | None = None,
        images_per_pass: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if images_per_pass is not None and images_per_pass < 1:
            raise ValueError(f"images_per_pass must be at least 1, or null for all at once, got {images_per_pass}")
        self.automatic_optimization = False  # a step has several backward passes
        self.model, self.optimizer_factory, self.frozen_encoder = model, optimizer, frozen_encoder
        self.gradient_clip, self.images_per_pass, self.seed = gradient_clip, images_per_pass, seed
        self.ema = WeightEMA(ema_decay) if ema_decay is not None else None
        self.preemption_requested = self.is_preempted = False
        self.run_description: dict[str, Any] | None = None
        """Content of a checkpoint with which it can be read without its run folder (`sam_train.checkpoint.run_description`)."""
        self._schedule_change: ScheduleChange | None = None
        if compile_encoder:
            model.image_encoder.compile()  # in place: the names of the weights do not change

    @abstractmethod
    def backpropagate(self, batch: Batch, metrics: StepMetricsAccumulator, *, offset: int) -> None:
        """Accumulate the gradients of the summed losses of one pass, and add these sums to `metrics`.

        offset: number of images that this process has already taken in earlier passes of the step.
        """

    @abstractmethod
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics with a batch."""

    @property
    def trained_module(self) -> nn.Module:
        """The module whose parameters the optimiser steps."""
        return self.model

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run one optimiser step on a batch, in passes of at most `images_per_pass` images.

        Raises TrainingError if a loss or the gradient is NaN or inf.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        metrics = StepMetricsAccumulator(batch.images.device, self.metric_names, mean_over=self.mean_over)
        metrics.add_batch(batch, preemption_requested=self.preemption_requested)
        torch.manual_seed(hash_seed((self.seed, self.global_step, rank_and_world_size()[0], int(RngStream.DROPOUT))))
        offset = 0
        for part in batch.split(self.images_per_pass or len(batch.keys)):
            draw_drop_paths(self.model.image_encoder, self.image_seeds(part, RngStream.DROP_PATH, offset), part.images.device)
            self.backpropagate(part, metrics, offset=offset)
            offset += len(part.keys)
        step_metrics = metrics.reduce()
        gradient_norm = self._reduce_gradients(step_metrics)
        check_finite(step_metrics, gradient_norm, batch.keys, step=self.global_step, folder=self._run_dir())
        self._update_weights(optimizer, step_metrics)
        self._log_step(step_metrics, gradient_norm)

    def encode(self, batch: Batch) -> Float[Tensor, "B E h w"]:
        """Return the image embeddings of a batch, from the frozen encoder if there is one."""
        return self.frozen_encoder(batch) if self.frozen_encoder else self.model.encode_images(batch.images, batch.sizes_hw)

    def image_seeds(self, batch: Batch, stream: RngStream, offset: int) -> list[tuple[int, ...]]:
        """Return one seed for each image of a pass; `offset` as in `backpropagate`."""
        return image_seeds(len(batch.keys), stream, seed=self.seed, step=self.global_step, offset=offset)

    def configure_callbacks(self) -> list[Callback]:
        """Return the EMA callback, if `ema_decay` is set."""
        return [self.ema] if self.ema else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser of `trained_module` and its schedule over the trainer's `max_steps`."""
        make = getattr(self.trainer.strategy, "build_optimizer", None)  # a single process runs Lightning's own strategy
        optimizer, schedule = self.optimizer_factory.build(self.trained_module, self.trainer.max_steps, make)
        if self._schedule_change:
            self._schedule_change.apply(schedule)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the schedule smooth if the run resumes with another number of max_steps, and say so."""
        stored = checkpoint.get("schedule")  # checkpoints of earlier versions have none
        if not stored:
            return
        before, after = stored["max_steps"], self.trainer.max_steps
        earlier = ScheduleChange(**stored["change"]) if stored["change"] else None
        change = change_of_length(self.optimizer_factory, checkpoint["global_step"], before, after, earlier)
        if change:
            log_rank_zero("%s", change.describe(self.optimizer_factory, before, after))
        self._schedule_change = change or earlier

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's description and the length of the schedule, and mark the run's only epoch as unfinished.

        A run that resumes with more max_steps would otherwise end at once.
        """
        if self.run_description is not None:
            checkpoint[RUN_KEY] = self.run_description
        checkpoint["schedule"] = stored_schedule(self.trainer.max_steps, self._schedule_change)
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress["processed"] = progress["completed"] = 0

    def _reduce_gradients(self, step_metrics: ReducedStepMetrics) -> Float[Tensor, ""]:
        """Turn this process's summed gradients into the step's mean gradients and clip them. Return the norm before clipping."""
        parameters = [p for p in self.trained_module.parameters() if p.requires_grad]
        sum_gradients(parameters)
        divide_gradients(parameters, step_metrics.count)
        return clip_gradients(parameters, self.gradient_clip)

    def _update_weights(self, optimizer: Any, step_metrics: ReducedStepMetrics) -> None:
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        if self.ema:
            self.ema.update(self)
        self.is_preempted, self.last_step_metrics = step_metrics.preemption_requested, step_metrics

    def _log_step(self, step_metrics: ReducedStepMetrics, gradient_norm: Tensor) -> None:
        values, count = step_metrics.metrics(), int(step_metrics.count)
        self.log_dict({f"train/{k}": v for k, v in values.items()} | {"train/gradient_norm": gradient_norm}, batch_size=count)

    def _run_dir(self) -> Path | None:
        return Path(self.trainer.default_root_dir) if self._trainer else None
