"""`sam-report run=FOLDER`: write report.json and report.html, print the stage table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_engine.report.build_report import write_report
from data_engine.report.stage_statistics import StageNumbers
from data_engine.report.stage_table import COLUMNS, MODEL_TITLE, cell, model_cell
from sam_train.errors import exit_with_message


@exit_with_message
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write the report, print what it says."""
    given = parsed(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    with console.status("reading the run"):
        report = write_report(given.run, heldout_images=given.heldout_images)
    console.print(stage_table(report.stages))
    for note in report.notes:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    console.print(escape(str(report.html_path)), soft_wrap=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """`run` and `heldout_images`. SystemExit for what is not taken, with its message."""
    parser = argparse.ArgumentParser(
        prog="sam-report",
        description="Write report.json and report.html of a run of the cycle.",
        usage="sam-report run=FOLDER [heldout_images=N]",
    )
    parser.add_argument("--run", type=Path, required=True, help="the run's folder, for example runs/quickstart")
    parser.add_argument("--heldout-images", type=_at_least_one, default=24, help="images on which models are compared (24)")
    return parser.parse_args([_as_option(argument) for argument in arguments])


def stage_table(stages: Sequence[StageNumbers]) -> Table:
    """The stage table for a terminal, broken into lines so that it fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("Stage", no_wrap=True)
    for column in COLUMNS:
        title = column.title.replace(" / ", "\n/").replace(" ", "\n").replace("@", "\n@")
        table.add_column(title, justify="right")
    table.add_column(MODEL_TITLE)
    for line in stages:
        cells = [*(cell(line, column) for column in COLUMNS), model_cell(line)]
        table.add_row(escape(line.step), *(c.text if c.present else "[dim]" + c.text.replace(" ", "\n") for c in cells))
    return table


def _as_option(argument: str) -> str:
    """run=FOLDER, as all other commands of the engine have it, to --run=FOLDER."""
    name, equals, _ = argument.partition("=")
    return f"--{argument.replace('_', '-', name.count('_'))}" if equals and name.isidentifier() else argument


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more images, got {number}")
    return number


if __name__ == "__main__":
    main()
