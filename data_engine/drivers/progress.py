"""Progress of a run: a bar on a terminal, one line per slice in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from data_engine.slices import SliceResult, SliceStatus

_SPEED_WINDOW_S = 600.0
"""Seconds over which the speed is averaged. It is long because one image may take minutes."""


class ProgressBar:
    """Progress bar of a run of `num_images` images, `num_done` of which are already in shards."""

    def __init__(self, *, description: str, num_images: int, num_done: int, console: Console | None = None) -> None:
        self._console = console or Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            _SpeedColumn(),
            TextColumn("{task.fields[masks]} masks, {task.fields[skipped]} skipped"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=self._console, speed_estimate_period=_SPEED_WINDOW_S, disable=not self._console.is_terminal
        )
        self._masks, self._skipped = 0, 0
        self._task = self._progress.add_task(description, total=num_images, completed=num_done, masks=0, skipped=0)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start_image(self, origin: str) -> None:
        """Implement `ProgressListener`."""

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        """Implement `ProgressListener`."""
        self._masks += masks
        self._skipped += skipped
        self._progress.update(self._task, advance=images + skipped, masks=self._masks, skipped=self._skipped)

    def finish_slice(self, result: SliceResult, *, counted: bool) -> None:
        """Implement `ProgressDisplay`."""
        if not counted:
            self.advance(images=result.images, masks=result.masks, skipped=result.skipped)
        if not self._console.is_terminal:
            self.log(format_slice_result(result))

    def log(self, text: str) -> None:
        """Implement `ProgressDisplay`."""
        self._console.print(text, highlight=False, soft_wrap=True)


class ProgressLog:
    """Progress display of a task whose output goes into a log: one line per slice."""

    def start_image(self, origin: str) -> None:
        """Implement `ProgressListener`."""

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        """Implement `ProgressListener`."""

    def finish_slice(self, result: SliceResult, *, counted: bool) -> None:
        """Implement `ProgressDisplay`."""
        self.log(format_slice_result(result))

    def log(self, text: str) -> None:
        """Implement `ProgressDisplay`."""
        print(text, flush=True)


def format_slice_result(result: SliceResult) -> str:
    """Return the line that is printed for a complete slice."""
    totals = f"{result.images} images, {result.masks} masks, {result.skipped} skipped"
    if result.status is not SliceStatus.WRITTEN:
        return f"slice {result.index}: {totals}, by another process"
    return f"slice {result.index}: {totals}, {result.seconds:.1f} s"


class _SpeedColumn(TextColumn):
    """Column with the speed in images per second, or in seconds per image if it is below one image per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} images/s" if speed >= 1 else f"{1 / speed:.1f} s/image", style="progress.data.speed")
