"""Handler of `sam-report`: writes report.json and report.html of a data-engine loop, and prints the stage table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_engine.report.build_report import write_report
from data_engine.report.stage_statistics import StageStatistics
from data_engine.report.stage_table import COLUMNS, MODEL_TITLE, cell, model_cell
from sam_train.errors import ConfigError


def report(*, run: str, heldout_images: str = "24") -> None:
    """Write the report of the loop in the folder `run` and print the stage table.

    heldout_images: number of held-out images on which the models are compared, 1 or more.

    Raises ConfigError if `run` is not the folder of a loop, or if `heldout_images` is not such a number.
    """
    if not heldout_images.isdecimal() or int(heldout_images) < 1:
        raise ConfigError(f"heldout_images={heldout_images}: expected a whole number of at least 1")
    console = Console()
    with console.status("reading the run"):
        written = write_report(Path(run), heldout_images=int(heldout_images))
    console.print(stage_table(written.stages))
    for note in written.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    console.print(escape(str(written.html_path)), soft_wrap=True)


def stage_table(stages: Sequence[StageStatistics]) -> Table:
    """Return the stage table for a terminal, with broken titles so that it fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("Stage", no_wrap=True)
    for column in COLUMNS:
        title = column.title.replace(" / ", "\n/").replace(" ", "\n").replace("@", "\n@")
        table.add_column(title, justify="right")
    table.add_column(MODEL_TITLE)
    for row in stages:
        cells = [*(cell(row, column) for column in COLUMNS), model_cell(row)]
        table.add_row(escape(row.step), *(c.text if c.present else "[dim]" + c.text.replace(" ", "\n") for c in cells))
    return table
