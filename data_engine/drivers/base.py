"""What the engine expects of a driver, and what all of them share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from data_engine.slices import EngineJob, ProgressListener, SliceResult, SliceStatus, Worker

PAUSE_S = 1.0
"""Before a slice is asked for again that another process works on."""


@runtime_checkable
class ProgressDisplay(ProgressListener, Protocol):
    """Whoever follows a run."""

    def slice(self, outcome: SliceResult, *, told: bool) -> None:
        """A slice is whole. `told`: its pictures were, one by one, by `add`."""
        ...

    def say(self, text: str) -> None:
        """A sentence for the person who started the run."""
        ...


@runtime_checkable  # so that the type checks of the tests can ask
class Driver(Protocol):
    """Brings slices to workers."""

    def width(self, device: str) -> int:
        """Workers at once."""
        ...

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Make these slices. Returns those that were given up, each with the reason.

        Raises what a worker raises, as far as it concerns all slices.
        """
        ...


class SliceQueue:
    """Slices to hand out. Those that others hold come back after a pause."""

    def __init__(self, slices: Sequence[int]) -> None:
        self._now, self._later = deque(slices), deque[tuple[float, int]]()

    def __len__(self) -> int:
        return len(self._now) + len(self._later)

    def take(self) -> int | None:
        """The next one; None when there is none at this moment."""
        if not self._now and self._later and self._later[0][0] <= time.monotonic():
            return self._later.popleft()[1]
        return self._now.popleft() if self._now else None

    def again(self, index: int) -> None:
        """Next of all."""
        self._now.appendleft(index)

    def later(self, index: int) -> None:
        """After a pause, and after all that nobody holds."""
        self._later.append((time.monotonic() + PAUSE_S, index))


def report_or_defer(outcome: SliceResult, todo: SliceQueue, display: ProgressDisplay) -> None:
    """Tell of a slice that a worker gave back, or put it off."""
    if outcome.status is SliceStatus.HELD:
        todo.later(outcome.index)
        return
    display.slice(outcome, told=outcome.status is SliceStatus.WRITTEN)


def process_slices(worker: Worker, slices: Sequence[int], display: ProgressDisplay) -> None:
    """Make slices in this process, one after the other; waits for those that others hold."""
    todo, said = SliceQueue(slices), False
    while todo:
        index = todo.take()
        if index is None:
            if not said:
                display.say(f"waiting for {len(todo)} slices that other processes work on")
            said = True
            time.sleep(PAUSE_S / 4)
            continue
        report_or_defer(worker.run(index, display), todo, display)
