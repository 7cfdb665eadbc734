"""Actions as processes on this machine, one after the other, and their run times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Protocol, runtime_checkable

import torch

from data_engine.console import console
from data_engine.cycle.pipeline import Cycle
from data_engine.cycle_folder import CycleFolder
from sam_train.errors import INTERRUPTED_EXIT_CODE, SamTrainError

UPDATE_INTERVAL_S = 20.0
"""Seconds between two updates of the stored run time of a process."""
PREEMPTED_EXIT_CODE = 75
"""Exit code of a training that was preempted and wrote its checkpoint."""


@runtime_checkable  # the type checks of the tests need it
class CycleRunner(Protocol):
    """Executes the actions of a loop, on this machine or elsewhere."""

    def run(self, cycle: Cycle) -> None:
        """Execute, or submit, every action that is not done."""
        ...

    def has_queued_jobs(self, folder: CycleFolder) -> bool:
        """Return whether an earlier command submitted jobs that are still waiting or running."""
        ...


class SubprocessRunner:
    """Executes the actions on this machine. An annotation or training may use other machines through its own config."""

    def run(self, cycle: Cycle) -> None:
        """Execute every action that is not done. Raises SamTrainError at the first that fails."""
        for action in cycle.list_actions():
            if not cycle.is_done(action):
                cycle.execute(action)
            elif action.kind == "evaluate":
                console.print(f"[dim]{action.step_name}: done")

    def has_queued_jobs(self, folder: CycleFolder) -> bool:
        """Return False: another loop on this machine is detected by the lock."""
        return False


class ProcessLauncher:
    """Starts modules of this project as processes and waits for their end.

    lock: stays open in the child, so that a new loop waits for a process that a killed one left running.
    training_prefix: command before Python for a training, such as srun and its options.
    training_overrides: additional overrides of a training, such as its number of devices.
    """

    def __init__(
        self,
        folder: CycleFolder,
        lock: IO[str],
        *,
        training_prefix: Sequence[str] = (),
        training_overrides: Sequence[str] = (),
    ) -> None:
        self._folder, self._lock = folder, lock
        self._training_prefix, self._training_overrides = list(training_prefix), list(training_overrides)

    def start(self, title: str, module: str, *arguments: str) -> None:
        """Run a module and wait for its end.

        Raises SamTrainError if it fails (its own message is printed above), SystemExit(75) if a training was preempted and
        SystemExit(INTERRUPTED_EXIT_CODE) if Ctrl-C ended it, a training after it has written its checkpoint.
        """
        console.rule(title, align="left", style="dim")
        command = [sys.executable, "-m", module, *arguments]
        if module == "sam_train.train":
            command = [*self._training_prefix, *command, *self._training_overrides]
        with subprocess.Popen(command, pass_fds=[self._lock.fileno()]) as process:
            code = self._wait(process, title)
        if code == PREEMPTED_EXIT_CODE:
            console.print(f"{title} was preempted and wrote a checkpoint: start the same command again to resume")
            raise SystemExit(PREEMPTED_EXIT_CODE)
        if code == INTERRUPTED_EXIT_CODE:
            console.print(f"{title} was interrupted: start the same command again to resume")
            raise SystemExit(INTERRUPTED_EXIT_CODE)
        if code < 0:
            killed = f"{title} was killed by signal {-code} (signal 9 is sent when memory runs out)"
            raise SamTrainError(f"{killed}; start the same command again to resume")
        if code:
            raise SamTrainError(f"{title} ended with exit code {code}; fix the error above and start the same command again")

    def _wait(self, process: subprocess.Popen[bytes], title: str) -> int:
        """Return the exit code. The run time is stored regularly, so that little of it is lost if the loop is killed."""
        updated = time.monotonic()
        while True:
            try:
                code = process.wait(UPDATE_INTERVAL_S)
            except subprocess.TimeoutExpired:
                code = None
            now = time.monotonic()
            self._folder.add_process_time(title, now - updated, devices=num_devices())
            updated = now
            if code is not None:
                return code


def num_devices() -> int:
    """Return the GPUs that this process may use, 1 on a machine without a GPU; in a SLURM job those of all its nodes."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return nodes * max(1, torch.cuda.device_count())
