"""Worker processes that may die. One that does is reported and replaced, and its slice is tried once more."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from data_engine.drivers.base import ProgressDisplay, SliceQueue, report_or_defer
from data_engine.slices import EngineJob, SliceProgress, SliceResult, Worker
from sam_train.errors import SamTrainError, format_error

DEATHS_PER_SLICE = 2
DEATHS_IN_A_ROW = 6
"""Of any workers without a slice made in between: then it is not the pictures."""
_POLL_S = 0.25
# Not fork: this process has threads (the bar, torch), and a copy of their locks may be held for ever.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Where a process works."""

    device: str
    threads: int


def run_in_processes(
    job: EngineJob, slices: Sequence[int], display: ProgressDisplay, specs: Sequence[WorkerSpec]
) -> dict[int, str]:
    """Make slices in a process for each seat. Returns those given up after two deaths, with the reason.

    Raises SamTrainError with the words of the first worker that met an error; what others have begun is dropped then.
    """
    todo, deaths, failed = SliceQueue(slices), Counter[int](), dict[int, str]()
    workers = [_WorkerHandle(job, spec, display) for spec in specs]
    said, in_a_row = False, 0
    try:
        while todo or any(hand.index is not None for hand in workers):
            for hand in workers:
                if hand.index is None and (index := todo.take()) is not None:
                    hand.give(index)
            if not said and all(hand.index is None for hand in workers):
                display.say(f"waiting for {len(todo)} slices that other processes work on")
                said = True
            for hand in _ready(workers):
                heard = hand.listen()
                if isinstance(heard, SliceResult):
                    in_a_row = 0
                    report_or_defer(heard, todo, display)
                elif heard is not None:
                    in_a_row += 1
                    _handle_worker_death(heard, in_a_row, todo, deaths, failed, display)
    finally:
        for hand in workers:
            hand.dismiss()
    return failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    """Of a worker process; `index` is the slice it was at, None when it had none."""

    index: int | None
    how: str


def _handle_worker_death(
    death: _Death, in_a_row: int, todo: SliceQueue, deaths: Counter[int], failed: dict[int, str], display: ProgressDisplay
) -> None:
    if in_a_row >= DEATHS_IN_A_ROW:
        what_to_do = "see that there is memory for each (driver.processes) and start the same command again"
        raise SamTrainError(f"worker processes die one after the other, the last one {death.how}: {what_to_do}")
    if death.index is None:
        display.say(f"a worker process {death.how}")
        return
    deaths[death.index] += 1
    if deaths[death.index] < DEATHS_PER_SLICE:
        display.say(f"a worker process {death.how}: slice {death.index} is tried once more")
        todo.again(death.index)
    else:
        failed[death.index] = f"its worker process {death.how}, for the second time"
        display.say(f"slice {death.index} is given up: {failed[death.index]}")


class _WorkerHandle:
    """A worker process and the pipe to it."""

    def __init__(self, job: EngineJob, spec: WorkerSpec, display: ProgressDisplay) -> None:
        self._job, self._seat, self._audience = job, spec, display
        self.index: int | None = None
        self._start()

    def _start(self) -> None:
        self._tally, self._origin = SliceProgress(self._audience), ""
        self.pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(self._job, self._seat, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here when the process dies

    def give(self, index: int) -> None:
        """Hand it a slice."""
        self.index, self._tally = index, SliceProgress(self._audience)
        with suppress(OSError):  # it died: `listen` will tell
            self.pipe.send(index)

    def listen(self) -> SliceResult | _Death | None:
        """One message of the process; None for one that was about a picture. Raises SamTrainError for an error there."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            return self._replace()
        if kind == "begin":
            self._origin = content
        elif kind == "add":
            self._tally.add(**content)
        elif kind == "error":
            raise SamTrainError(content)
        else:
            self.index = None
            assert isinstance(content, SliceResult)
            return content
        return None

    def dismiss(self) -> None:
        """End the process. What it has begun is dropped: a shard is whole or not there."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()

    def _replace(self) -> _Death:
        self.pipe.close()
        self._process.join()
        code, index = self._process.exitcode or 0, self.index
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        how += " (what a system out of memory sends)" if code == -signal.SIGKILL else ""
        how += f" at {self._origin}" if self._origin else ""
        self._tally.revert()
        self.index = None
        self._start()
        return _Death(index=index, how=how)


def _ready(workers: Sequence[_WorkerHandle]) -> list[_WorkerHandle]:
    pipes = {hand.pipe: hand for hand in workers}
    return [pipes[pipe] for pipe in wait(list(pipes), timeout=_POLL_S) if isinstance(pipe, Connection)]


class _ParentGoneError(Exception):
    """The process that started this one is gone."""


class _WorkerPipe:
    """A worker's end of the pipe, and its watch."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def begin(self, origin: str) -> None:
        self.tell("begin", origin)

    def add(self, *, images: int, masks: int, skipped: int) -> None:
        self.tell("add", {"images": images, "masks": masks, "skipped": skipped})

    def tell(self, kind: str, content: object) -> None:
        try:
            self._pipe.send((kind, content))
        except OSError as error:
            raise _ParentGoneError from error

    def hear(self) -> int:
        try:
            index: int = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _ParentGoneError from error
        return index


def _serve(job: EngineJob, spec: WorkerSpec, pipe: Connection) -> None:
    """What a worker process does: a slice for each number that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the process that started this one decides
    ear = _WorkerPipe(pipe)
    with suppress(_ParentGoneError):
        try:
            worker = Worker(job, device=spec.device, threads=spec.threads)
            while True:
                ear.tell("outcome", worker.run(ear.hear(), ear))
        except (SamTrainError, OSError) as error:
            ear.tell("error", format_error(error))
        except _ParentGoneError:
            raise
        except Exception:  # a fault of ours: all of it is wanted
            ear.tell("error", f"a worker process met an error that nobody expected:\n{traceback.format_exc()}")
