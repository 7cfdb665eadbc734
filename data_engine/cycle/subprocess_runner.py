"""Steps as processes, one after the other, and the clock that says how long each ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import torch

from data_engine.console import console
from data_engine.cycle.pipeline import Cycle
from sam_train.errors import SamTrainError
from sam_train.files import atomic_write_bytes

TICK_S = 20.0
ASKED_TO_LEAVE = 75
"""Exit code of a training that was asked to go and wrote its checkpoint."""


@runtime_checkable  # so that the type checks of the tests can ask
class CycleRunner(Protocol):
    """Where the steps of a cycle run."""

    def run(self, cycle: Cycle) -> None:
        """See to it that every action of the cycle is done, or will be."""
        ...

    def has_queued_jobs(self, run_dir: Path) -> bool:
        """Whether an earlier command saw to it already, so that this one need only say so."""
        ...


class SubprocessRunner:
    """On this machine, one after the other; each annotation and training may spread over others by its own config."""

    def run(self, cycle: Cycle) -> None:
        """Do what is not done. Raises SamTrainError for the first that fails."""
        for action in cycle.actions():
            if not cycle.is_done(action):
                cycle.perform(action)
            elif action.what == "evaluate":
                console.print(f"[dim]{action.folder}: done")

    def has_queued_jobs(self, run_dir: Path) -> bool:
        """Never: a cycle that another command runs holds the lock."""
        return False


class ProcessLauncher:
    """Starts modules of ours and waits for them.

    lock: stays with the child, so that a cycle killed alone leaves a worker that a new cycle must wait for.
    under: what stands before Python for a training, such as srun and its options; devices: overrides that it is given too.
    """

    def __init__(self, run_dir: Path, lock: IO[str], *, under: Sequence[str] = (), devices: Sequence[str] = ()) -> None:
        self.clock, self._lock = ProcessTimes(run_dir / "clock.json"), lock
        self._under, self._devices = list(under), list(devices)

    def start(self, title: str, module: str, *arguments: str) -> None:
        """Run a module and wait.

        Raises SamTrainError when it fails, its own message stands above; SystemExit(75) when a training was asked to leave.
        """
        console.rule(title, align="left", style="dim")
        command = [sys.executable, "-m", module, *arguments]
        if module == "sam_train.train":
            command = [*self._under, *command, *self._devices]
        with subprocess.Popen(command, pass_fds=[self._lock.fileno()]) as process:
            code = self.clock.wait(process, title)
        if code == ASKED_TO_LEAVE:
            console.print(f"{title} was asked to leave and kept what it had: start the same command again to go on")
            raise SystemExit(ASKED_TO_LEAVE)
        if code < 0:
            killed = f"{title} was killed by signal {-code} (9 is what a system out of memory sends)"
            raise SamTrainError(f"{killed}; start the same command again to go on")
        if code:
            raise SamTrainError(f"{title} ended with exit code {code}; mend what it says and start again")


class ProcessTimes:
    """How long the processes of a run took: {title: {"seconds": ..., "devices": ...}}, told every `TICK_S` and at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait(self, process: subprocess.Popen[bytes], title: str) -> int:
        """Its exit code. What a killed cycle had waited before stays counted."""
        told = time.monotonic()
        while True:
            try:
                code = process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                code = None
            now = time.monotonic()
            self._add(title, now - told)
            told = now
            if code is not None:
                return code

    def _add(self, title: str, seconds: float) -> None:
        times = self.times()
        before = times.get(title, {}).get("seconds", 0.0)
        times[title] = {"seconds": round(before + seconds, 3), "devices": num_devices()}
        atomic_write_bytes(self.path, (json.dumps(times, indent=1) + "\n").encode())

    def times(self) -> dict[str, dict[str, float]]:
        """What it told so far."""
        return dict(json.loads(self.path.read_bytes())) if self.path.is_file() else {}


def num_devices() -> int:
    """GPUs that this process may use, or 1: a machine without any. In a SLURM job those of all its nodes."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return nodes * max(1, torch.cuda.device_count())
