"""One cycle at a time in a run folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_engine.console import console
from sam_train.errors import ConfigError


@contextmanager
def lock_run_folder(run_dir: Path, *, wait: bool = True) -> Iterator[IO[str]]:
    """Hold the run folder alone; waits for what a killed cycle left running.

    Raises ConfigError where it is held and not `wait`.
    """
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ConfigError(f"{run_dir} is in use by a cycle: wait for its end, or end it first") from None
            console.print(f"{run_dir} is in use by another cycle or by what a killed one left running: waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
