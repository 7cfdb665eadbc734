"""Process every shard with the same function, in one or several processes, with a progress bar."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sam_train.errors import ConfigError, SamTrainError

R = TypeVar("R")
Advance = Callable[[int], None]
"""Function that is called with the number of bytes of a shard that are done."""


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the option `--workers`."""
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of processes; each handles one shard at a time (default 1)"
    )


def map_shards(
    work: Callable[[Path, Advance], R], shards: Sequence[Path], *, workers: int, what: str
) -> Iterator[tuple[Path, R]]:
    """Yield each shard with the result of `work`, in the order of `shards`. `what` is the title of the progress bar.

    With more than one worker `work` must be a function of a module, or a partial of one. Raises what `work` raises;
    ConfigError for less than one worker; SamTrainError if a worker was killed.
    """
    if workers < 1:
        raise ConfigError(f"--workers must be 1 or more, got {workers}")
    sizes = {shard: shard.stat().st_size if shard.is_file() else 0 for shard in shards}
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=sum(sizes.values()))
        if workers == 1:
            for shard in shards:
                yield shard, work(shard, partial(progress.advance, task))
            return
        for shard, result in zip(shards, _in_processes(work, shards, workers), strict=True):
            progress.advance(task, sizes[shard])
            yield shard, result


def _in_processes(work: Callable[[Path, Advance], R], shards: Sequence[Path], workers: int) -> Iterator[R]:
    # Not fork: this process has threads (progress bar, torch), and a copied lock might never be released.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
        try:
            yield from pool.map(partial(_without_progress, work), shards)
        except BrokenProcessPool as error:
            raise SamTrainError("a worker was killed, probably out of memory: start again with fewer --workers") from error


def _without_progress(work: Callable[[Path, Advance], R], shard: Path) -> R:
    return work(shard, _ignore_progress)


def _ignore_progress(_: int) -> None:
    """Ignore the progress: workers show no progress bar."""
