"""Leaving when the cluster says so: the step ends, the checkpoint is written, and the same command goes on from there."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM sends before it takes a job's nodes away, and what sbatch's --signal is asked to send before the time is up."""


class Preempted(Exception):
    """The run was asked to leave and has written its checkpoint. `is_first`: in the first of its processes."""

    def __init__(self, message: str, *, is_first: bool) -> None:
        super().__init__(message)
        self.is_first = is_first


class LeaveOnSignal(Callback):
    """On SIGTERM or SIGUSR1 to any process, all of them end their step together, write `path`, and raise Preempted.

    Lightning's own handlers talk to other processes from inside a signal, whatever these are doing; they are replaced when
    training starts. Before that there is nothing to save. A validation that is due runs first: the checkpoint is on the disk
    by then, and only the validation is lost if patience ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen. Lightning puts back what was there when training ends."""

        def ask(signum: int, frame: Any) -> None:
            pl_module.asked_to_stop = True  # type: ignore[assignment]

        for number in SIGNALS:
            signal.signal(number, ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Checkpoint first."""
        if pl_module.stopping and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave, when the last step's row is in the logs."""
        if self._saved:
            message = f"asked to leave after step {trainer.global_step}: {self.path} is written, the same command goes on"
            raise Preempted(message, is_first=trainer.is_global_zero)
