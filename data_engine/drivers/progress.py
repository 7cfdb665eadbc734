"""How far a run is, on the terminal; in a log, a line a slice."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from data_engine.slices import SliceResult, SliceStatus

_OVER_S = 600.0
"""Seconds over which the speed is taken: a picture may need minutes."""


class ProgressBar:
    """The audience of a run of `num_images` pictures, `num_done` of which are in shards already."""

    def __init__(self, *, description: str, num_images: int, num_done: int, console: Console | None = None) -> None:
        self._console = console or Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            _Speed(),
            TextColumn("{task.fields[masks]} masks, {task.fields[skipped]} skipped"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=self._console, speed_estimate_period=_OVER_S, disable=not self._console.is_terminal
        )
        self._masks, self._skipped = 0, 0
        self._task = self._progress.add_task(description, total=num_images, completed=num_done, masks=0, skipped=0)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, origin: str) -> None:
        """As `ProgressListener`."""

    def add(self, *, images: int, masks: int, skipped: int) -> None:
        """As `ProgressListener`."""
        self._masks += masks
        self._skipped += skipped
        self._progress.update(self._task, advance=images + skipped, masks=self._masks, skipped=self._skipped)

    def slice(self, outcome: SliceResult, *, told: bool) -> None:
        """As `ProgressDisplay`."""
        if not told:
            self.add(images=outcome.images, masks=outcome.masks, skipped=outcome.skipped)
        if not self._console.is_terminal:
            self.say(line(outcome))

    def say(self, text: str) -> None:
        """As `ProgressDisplay`."""
        self._console.print(text, highlight=False, soft_wrap=True)


class ProgressLog:
    """The audience of a task whose output goes into a log."""

    def begin(self, origin: str) -> None:
        """As `ProgressListener`."""

    def add(self, *, images: int, masks: int, skipped: int) -> None:
        """As `ProgressListener`."""

    def slice(self, outcome: SliceResult, *, told: bool) -> None:
        """As `ProgressDisplay`."""
        self.say(line(outcome))

    def say(self, text: str) -> None:
        """As `ProgressDisplay`."""
        print(text, flush=True)


def line(outcome: SliceResult) -> str:
    """What to print of a slice that is whole."""
    made = f"{outcome.images} images, {outcome.masks} masks, {outcome.skipped} skipped"
    if outcome.status is not SliceStatus.WRITTEN:
        return f"slice {outcome.index}: {made}, by another process"
    return f"slice {outcome.index}: {made}, {outcome.seconds:.1f} s"


class _Speed(TextColumn):
    """Images a second, or seconds an image."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """Of one task."""
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} images/s" if speed >= 1 else f"{1 / speed:.1f} s/image", style="progress.data.speed")
