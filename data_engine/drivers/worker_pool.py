"""A pool of worker processes. A worker that dies is reported and replaced, and its slice is tried once more."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from data_engine.drivers.base import ProgressDisplay, SliceQueue, report_or_defer, waiting_message
from data_engine.slices import EngineJob, SliceProgress, SliceResult, Worker
from sam_train.errors import SamTrainError, format_error

MAX_DEATHS_PER_SLICE = 2
MAX_CONSECUTIVE_DEATHS = 6
"""Number of deaths of any workers, without a finished slice in between, that ends the run: the images are then not the cause."""
_POLL_S = 0.25
# Not fork: this process has threads (the progress bar, torch), and a forked copy of their locks may stay locked for ever.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Device and number of threads of a worker process."""

    device: str
    threads: int


def run_in_processes(
    job: EngineJob, slices: Sequence[int], display: ProgressDisplay, specs: Sequence[WorkerSpec]
) -> dict[int, str]:
    """Make slices in one process per spec. Return the slices that failed because their worker died twice, with the reason.

    Raises SamTrainError with the message of the first worker that raised an error; unfinished slices of the others are dropped.
    """
    queue, deaths, failed = SliceQueue(slices), Counter[int](), dict[int, str]()
    workers = [_WorkerHandle(job, spec, display) for spec in specs]
    logged, consecutive_deaths = False, 0
    try:
        while queue or any(worker.index is not None for worker in workers):
            for worker in workers:
                if worker.index is None and (index := queue.pop()) is not None:
                    worker.assign(index)
            if not logged and all(worker.index is None for worker in workers):
                display.log(waiting_message(queue))
                logged = True
            for worker in _ready_workers(workers):
                message = worker.receive()
                if isinstance(message, SliceResult):
                    consecutive_deaths = 0
                    report_or_defer(message, queue, display)
                elif message is not None:
                    consecutive_deaths += 1
                    _handle_worker_death(message, consecutive_deaths, queue, deaths, failed, display)
    finally:
        for worker in workers:
            worker.terminate()
    return failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkerDeath:
    """Death of a worker process. `index` is the slice that it was making, None if it had none."""

    index: int | None
    cause: str


def _handle_worker_death(
    death: _WorkerDeath,
    consecutive_deaths: int,
    queue: SliceQueue,
    deaths: Counter[int],
    failed: dict[int, str],
    display: ProgressDisplay,
) -> None:
    if consecutive_deaths >= MAX_CONSECUTIVE_DEATHS:
        remedy = "make sure that there is enough memory for driver.processes and start the same command again"
        raise SamTrainError(f"{consecutive_deaths} worker processes in a row died, the last one {death.cause}: {remedy}")
    if death.index is None:
        display.log(f"a worker process {death.cause}")
        return
    deaths[death.index] += 1
    if deaths[death.index] < MAX_DEATHS_PER_SLICE:
        display.log(f"a worker process {death.cause}: slice {death.index} is tried once more")
        queue.put_first(death.index)
    else:
        failed[death.index] = f"its worker process {death.cause}, for the second time"
        display.log(f"slice {death.index} failed: {failed[death.index]}")


class _WorkerHandle:
    """A worker process and the parent's end of the pipe to it."""

    def __init__(self, job: EngineJob, spec: WorkerSpec, display: ProgressDisplay) -> None:
        self._job, self._spec, self._display = job, spec, display
        self.index: int | None = None
        self._start()

    def _start(self) -> None:
        self._progress, self._origin = SliceProgress(self._display), ""
        self.pipe, child_end = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(self._job, self._spec, child_end), daemon=True)
        self._process.start()
        child_end.close()  # the pipe then reports end of file when the process dies

    def assign(self, index: int) -> None:
        """Send a slice to the process."""
        self.index, self._progress = index, SliceProgress(self._display)
        with suppress(OSError):  # the process died, which `receive` reports
            self.pipe.send(index)

    def receive(self) -> SliceResult | _WorkerDeath | None:
        """Receive one message of the process; return None if it was about an image.

        Raises SamTrainError with the message of an error in the process.
        """
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            return self._replace()
        if kind == "start_image":
            self._origin = content
        elif kind == "advance":
            self._progress.advance(**content)
        elif kind == "error":
            raise SamTrainError(content)
        else:
            self.index = None
            assert isinstance(content, SliceResult)
            return content
        return None

    def terminate(self) -> None:
        """End the process. Its unfinished slice is dropped; shards are written atomically."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()

    def _replace(self) -> _WorkerDeath:
        self.pipe.close()
        self._process.join()
        code, index = self._process.exitcode or 0, self.index
        cause = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        cause += " (possibly by the out-of-memory killer)" if code == -signal.SIGKILL else ""
        cause += f" at {self._origin}" if self._origin else ""
        self._progress.revert()
        self.index = None
        self._start()
        return _WorkerDeath(index=index, cause=cause)


def _ready_workers(workers: Sequence[_WorkerHandle]) -> list[_WorkerHandle]:
    by_pipe = {worker.pipe: worker for worker in workers}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout=_POLL_S) if isinstance(pipe, Connection)]


class _ParentGoneError(Exception):
    """The parent process ended."""


class _WorkerPipe:
    """The worker's end of the pipe, which is also the worker's progress listener."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def start_image(self, origin: str) -> None:
        self.send("start_image", origin)

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        self.send("advance", {"images": images, "masks": masks, "skipped": skipped})

    def send(self, kind: str, content: object) -> None:
        try:
            self._pipe.send((kind, content))
        except OSError as error:
            raise _ParentGoneError from error

    def receive_index(self) -> int:
        try:
            index: int = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _ParentGoneError from error
        return index


def _serve(job: EngineJob, spec: WorkerSpec, connection: Connection) -> None:
    """Run the main loop of a worker process: make one slice for each index that is received."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides what to do
    pipe = _WorkerPipe(connection)
    with suppress(_ParentGoneError):
        try:
            worker = Worker(job, device=spec.device, threads=spec.threads)
            while True:
                pipe.send("result", worker.process_slice(pipe.receive_index(), pipe))
        except (SamTrainError, OSError) as error:
            pipe.send("error", format_error(error))
        except _ParentGoneError:
            raise
        except Exception:  # a bug of ours: the full traceback is needed
            pipe.send("error", f"unexpected error in a worker process:\n{traceback.format_exc()}")
