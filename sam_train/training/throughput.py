"""What a run says of itself beside its losses: how fast it is, what it waits for, how much memory it holds."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from sam_train.training.step_metrics import COUNTS, ReducedStepMetrics


class ThroughputLogger(Callback):
    """Logs, as means over the steps since the last row of the log: images and masks a second (of all devices), the share of
    the time in which a step waited for its batch, and the most memory so far, in GB: the device's, or the process's on a CPU.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._ended = clock()
        self._images = self._masks = self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is waited for from here."""
        self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._waited += self._clock() - self._ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step is done."""
        sums = cast(ReducedStepMetrics, pl_module.last_step_metrics).sums
        counts = dict(zip(COUNTS, sums[: len(COUNTS)].tolist(), strict=True))
        self._images, self._masks, self._ended = self._images + counts["images"], self._masks + counts["masks"], self._clock()
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds = max(self._ended - self._began, 1e-9)
            values = {"images_per_second": self._images / seconds, "masks_per_second": self._masks / seconds}
            values |= {"waiting_share": self._waited / seconds, "memory_gb": peak_memory(pl_module.device) / 1e9}
            pl_module.log_dict({f"speed/{name}": value for name, value in values.items()}, batch_size=1)
            self._forget()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What it took is no part of a step."""
        self._forget()

    def _forget(self) -> None:
        self._began = self._ended = self._clock()
        self._images = self._masks = self._waited = 0.0


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on a GPU by torch, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
