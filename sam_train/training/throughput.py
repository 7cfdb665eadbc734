"""Throughput, data-loading time and peak memory of a run."""

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
    """Logs throughput and memory at the trainer's `log_every_n_steps`.

    `speed/images_per_second` and `speed/masks_per_second` are over all devices, and `speed/data_wait_fraction` is the fraction of
    the time in which a step waited for its batch, each since the last logged row. `speed/memory_gb` is the peak memory so far,
    of the GPU or, on a CPU, of the process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval_start = self._step_end = clock()
        self._images = self._masks = self._wait_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the first interval."""
        self._start_interval()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time since the last step to the data-loading time."""
        self._wait_s += self._clock() - self._step_end

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step and, at the end of an interval, log."""
        sums = cast(ReducedStepMetrics, pl_module.last_step_metrics).sums
        counts = dict(zip(COUNTS, sums[: len(COUNTS)].tolist(), strict=True))
        self._images, self._masks, self._step_end = self._images + counts["images"], self._masks + counts["masks"], self._clock()
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds = max(self._step_end - self._interval_start, 1e-9)
            values = {"images_per_second": self._images / seconds, "masks_per_second": self._masks / seconds}
            values |= {"data_wait_fraction": self._wait_s / seconds, "memory_gb": peak_memory_bytes(pl_module.device) / 1e9}
            pl_module.log_dict({f"speed/{name}": value for name, value in values.items()}, batch_size=1)
            self._start_interval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new interval: the duration of a validation is not part of a step."""
        self._start_interval()

    def _start_interval(self) -> None:
        self._interval_start = self._step_end = self._clock()
        self._images = self._masks = self._wait_s = 0.0


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far, in bytes: that of torch on a GPU, that of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
