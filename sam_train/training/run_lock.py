"""The lock on a run folder: one process trains in it at a time, on any machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from sam_train.claims import MACHINE, Claims, Holder
from sam_train.errors import ConfigError

log = logging.getLogger("sam_train")

FOLDER = ".lock"
EXPIRES_S = 120.0
"""Seconds without a sign of life after which the process of another machine is considered dead; `Claims` explains it."""


@contextmanager
def lock_run_folder(run_dir: Path, *, expires_s: float = EXPIRES_S) -> Iterator[None]:
    """Hold the lock of a run folder in the process of rank 0; the other ranks hold none.

    The lock of a dead process is taken over: at once on the same machine, after `expires_s` on another one. Raises ConfigError,
    which names the process, its machine and since when it holds the lock, if it is alive.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield
        return
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder, expires_s)
    claim = claims.acquire("run")
    holder = claims.holder("run")
    # On another machine only a missing heartbeat shows that the holder is dead, and that takes a while to see.
    deadline = time.monotonic() + expires_s + 1
    if claim is None and holder is not None and holder.machine != MACHINE:
        log.info("%s was in use %s: waiting up to %.0f s for its sign of life", run_dir, describe(holder), expires_s)
    while claim is None and holder is not None and holder.machine != MACHINE and time.monotonic() < deadline:
        time.sleep(min(1.0, expires_s / 10))
        if claims.has_heartbeat("run"):
            break
        claim = claims.acquire("run")
    if claim is None:
        raise ConfigError(f"{run_dir} is in use {describe(holder)}: wait until that run ends, or set another name=...")
    with claim:
        yield


def describe(holder: Holder | None) -> str:
    """Return who holds a lock, for a message."""
    if holder is None:
        return "by a process that has just started"
    return f"by process {holder.pid} on {holder.machine.partition(' ')[0]}, since {holder.since or 'an unknown time'}"
