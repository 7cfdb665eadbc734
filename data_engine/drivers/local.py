"""One process, one slice after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Slice = TypeVar("Slice")


def run_slices(slices: Sequence[Slice], work: Callable[[Slice], Iterable[object]], *, num_images: int, description: str) -> None:
    """Do `work` on each slice; it yields once an image, which moves the bar.

    Slices that are done already are not among `slices`; `num_images` counts what is left.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=num_images)
        for slice_ in slices:
            for _ in work(slice_):
                progress.advance(task)
