"""Terminal output that the `sam-data` commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def show_image_count(activity: str) -> Iterator[Callable[[int], None]]:
    """Show a spinner with the number of processed images on stderr; the yielded function sets the number.

    `activity`, such as "reading", is shown until the first image.
    """
    console = Console(stderr=True)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(activity, total=None)
        yield lambda num_images: progress.update(task, description=f"{num_images} images")


def format_counts(counts: Mapping[str, int]) -> str:
    """Return "counted: 2 crowd, 1 picture_missing" in the order of names, "" if there is nothing to count."""
    return "counted: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)) if counts else ""
