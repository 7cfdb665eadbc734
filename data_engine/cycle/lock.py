"""The lock on a run folder: only one loop at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from data_engine.console import console
from data_engine.cycle_folder import CycleFolder
from sam_train.errors import ConfigError


@contextmanager
def lock_run_folder(folder: CycleFolder, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold the lock of the run folder and yield its open file, which child processes inherit.

    Waits until another loop, or a process that a killed loop left running, releases the lock. Raises ConfigError instead if
    `wait` is false.
    """
    with folder.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ConfigError(f"{folder.path} is in use by a cycle: wait until it ends, or stop it first") from None
            console.print(f"{folder.path} is in use by another cycle or by a process that a killed cycle left running: waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
