"""The duration of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback


class RunTimer(Callback):
    """Measures the duration of a run in seconds, summed over the processes that resumed it.

    The duration is stored in checkpoints, and a process that resumes a run adds to it. The time between the last checkpoint and a
    kill is not counted; the steps that were lost are counted when they are repeated.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._earlier_seconds = clock, clock(), 0.0

    def seconds(self) -> float:
        """Return the duration until now: up to the checkpoint from which the run resumed, plus that of this process."""
        return self._earlier_seconds + self._clock() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the duration until now, for the checkpoint."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the duration up to the checkpoint."""
        self._earlier_seconds = float(state_dict["seconds"])
