"""Preemption and Ctrl-C: on a signal the run finishes its step, writes a checkpoint and exits; the same command resumes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a run after its step: SIGINT of Ctrl-C; SIGTERM, which SLURM sends before it takes a job's nodes away; and
those that are requested before the time limit: SIGUSR1 by slurm/train.sbatch, SIGUSR2 by submitit, whose own handler would not
wait for the checkpoint."""

REQUEUE_WAIT_S = 60
"""Seconds that a requeued job waits for SLURM to end it."""


class Preempted(Exception):
    """Raised after a preempted run has written its checkpoint.

    step: number of steps made. is_rank_zero: raised in the process of rank 0. is_interrupt: the signal was that of Ctrl-C.
    """

    def __init__(self, message: str, *, step: int, is_rank_zero: bool, is_interrupt: bool) -> None:
        super().__init__(message)
        self.step, self.is_rank_zero, self.is_interrupt = step, is_rank_zero, is_interrupt


class PreemptionCallback(Callback):
    """Makes all processes finish the step, write the checkpoint `path` and raise Preempted after one of SIGNALS to any process.

    It replaces Lightning's signal handlers when training starts: those communicate with other processes from inside a signal
    handler, whatever these are doing. Before training starts there is nothing to save. A validation that is due runs first; the
    checkpoint has been written by then, so if the job is killed during it, only the validation is lost. A second Ctrl-C ends
    the process at once, without a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = self._is_interrupt = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers. Lightning restores the previous ones when training ends."""

        def request_preemption(signum: int, frame: Any) -> None:
            if signum == signal.SIGINT:
                if self._is_interrupt:
                    raise KeyboardInterrupt
                self._is_interrupt = True
            pl_module.preemption_requested = True  # type: ignore[assignment]

        for number in SIGNALS:
            signal.signal(number, request_preemption)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the checkpoint of a preempted run."""
        if pl_module.is_preempted and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Raise Preempted, now that the row of the last step has been logged."""
        if self._saved:
            step = trainer.global_step
            message = f"preempted after step {step}: {self.path} is written, run the same command to resume"
            if self._is_interrupt:
                message = f"interrupted: start the same command again to go on after step {step} ({self.path} is written)"
            raise Preempted(message, step=step, is_rank_zero=trainer.is_global_zero, is_interrupt=self._is_interrupt)


def requeue_sweep_job() -> None:
    """Requeue the SLURM job of a Hydra sweep, which has no batch script that would do it. Elsewhere do nothing.

    submitit stores the function to run beside the job's log, so SLURM starts the same run again, which resumes. Return if SLURM
    has not ended this process after REQUEUE_WAIT_S: exiting sooner would count as the end of the job.
    Raises CalledProcessError if scontrol fails.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run([shutil.which("scontrol") or "scontrol", "requeue", job], check=True)
    time.sleep(REQUEUE_WAIT_S)
