"""Leaving when the cluster says so: the step ends, the checkpoint is written, and the same command goes on from there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM sends before it takes a job's nodes away, and what it is asked to send before the time is up: USR1 by
slurm/train.sbatch, USR2 by submitit, whose own answer would not wait for the checkpoint."""

TAKEN_AWAY_WITHIN_S = 60


class Preempted(Exception):
    """The run was asked to leave and has written its checkpoint. `is_rank_zero`: in the first of its processes."""

    def __init__(self, message: str, *, is_rank_zero: bool) -> None:
        super().__init__(message)
        self.is_rank_zero = is_rank_zero


class PreemptionCallback(Callback):
    """On one of SIGNALS to any process, all of them end their step together, write `path`, and raise Preempted.

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
            pl_module.preemption_requested = True  # type: ignore[assignment]

        for number in SIGNALS:
            signal.signal(number, ask)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Checkpoint first."""
        if pl_module.is_preempted and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave, when the last step's row is in the logs."""
        if self._saved:
            message = f"asked to leave after step {trainer.global_step}: {self.path} is written, the same command goes on"
            raise Preempted(message, is_rank_zero=trainer.is_global_zero)


def requeue_sweep_job() -> None:
    """Put a job of a sweep back in the queue; there is no script around it that would. Elsewhere nothing happens.

    submitit keeps what it was told to run beside the job's log, so SLURM starts the same run again, which goes on. Returns if
    SLURM has not ended this process after TAKEN_AWAY_WITHIN_S: to leave sooner would count as the job's end.
    Raises CalledProcessError when SLURM refuses.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run([shutil.which("scontrol") or "scontrol", "requeue", job], check=True)
    time.sleep(TAKEN_AWAY_WITHIN_S)
