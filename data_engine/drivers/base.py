"""The driver interface and the queue of slices that all drivers share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from data_engine.slices import EngineJob, ProgressListener, SliceResult, SliceStatus, Worker

RETRY_AFTER_S = 1.0
"""Seconds before a slice that another process holds is tried again."""


@runtime_checkable
class ProgressDisplay(ProgressListener, Protocol):
    """Shows the progress of a run to the user."""

    def finish_slice(self, result: SliceResult, *, counted: bool) -> None:
        """Show that a slice is complete. counted: whether `advance` has already counted its images one by one."""
        ...

    def log(self, text: str) -> None:
        """Show a message to the user."""
        ...


@runtime_checkable  # the runtime type checks of the tests need it
class Driver(Protocol):
    """Distributes slices to workers."""

    def num_workers(self, device: str) -> int:
        """Return the number of workers that run concurrently."""
        ...

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Make these slices. Return the slices that failed, each with the reason.

        Raises what a worker raises if the error concerns all slices.
        """
        ...


class SliceQueue:
    """Queue of slices that are still to be made; slices that other processes hold are deferred.

    waiting --pop--> with a worker --the worker reports its result--> removed
       ^                  |
       +---- put_first ---+   its process died: the slice is tried again immediately
       +---- defer -------+   another process holds it: it is tried again after RETRY_AFTER_S and after all waiting slices
    """

    def __init__(self, slices: Sequence[int]) -> None:
        self._waiting, self._deferred = deque(slices), deque[tuple[float, int]]()

    def __len__(self) -> int:
        """Return the number of slices in the queue, without those that workers have."""
        return len(self._waiting) + len(self._deferred)

    def pop(self) -> int | None:
        """Remove and return the next slice; None if no slice is due yet."""
        if not self._waiting and self._deferred and self._deferred[0][0] <= time.monotonic():
            return self._deferred.popleft()[1]
        return self._waiting.popleft() if self._waiting else None

    def put_first(self, index: int) -> None:
        """Put a slice at the front."""
        self._waiting.appendleft(index)

    def defer(self, index: int) -> None:
        """Put a slice behind all waiting ones, due after RETRY_AFTER_S."""
        self._deferred.append((time.monotonic() + RETRY_AFTER_S, index))


def report_or_defer(result: SliceResult, queue: SliceQueue, display: ProgressDisplay) -> None:
    """Show the result of a slice, or defer the slice if another process holds it."""
    if result.status is SliceStatus.HELD_ELSEWHERE:
        queue.defer(result.index)
        return
    display.finish_slice(result, counted=result.status is SliceStatus.WRITTEN)


def process_slices(worker: Worker, slices: Sequence[int], display: ProgressDisplay) -> None:
    """Make slices in this process, one after the other, and wait for those that other processes hold."""
    queue, logged = SliceQueue(slices), False
    while queue:
        index = queue.pop()
        if index is None:
            if not logged:
                display.log(waiting_message(queue))
            logged = True
            time.sleep(RETRY_AFTER_S / 4)
            continue
        report_or_defer(worker.process_slice(index, display), queue, display)


def waiting_message(queue: SliceQueue) -> str:
    """Return the message for a queue in which only slices of other processes are left."""
    return f"waiting for {len(queue)} slices that other processes hold"
