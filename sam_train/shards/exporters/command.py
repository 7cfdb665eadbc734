"""`sam-data export KIND --shards ... --out DIR`: shards to a form of others (a command of `sam_train.cli.data_command`)."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sam_train.errors import ConfigError
from sam_train.shards.exporters import EXPORTERS
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.options import add_options, option_values
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.tar_members import Sample

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_OURS = ("samples", "folder", "counts")


def add_export(commands: Commands) -> None:
    """`export` and its kinds, whose options are the exporters' signatures."""
    kinds = commands.add_parser("export", help="write shards in another form").add_subparsers(dest="kind", required=True)
    for kind, exporter in EXPORTERS.items():
        about = (inspect.getdoc(exporter) or "").partition("\n\n")
        sub = kinds.add_parser(kind, help=about[0], description=about[0], epilog=about[2])
        add_options(sub, exporter, but=_OURS)
        what = ".tar files, globs, brace ranges or folders of them"
        sub.add_argument("--shards", nargs="+", required=True, metavar="SHARDS", help=what)
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the export")
        sub.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> None:
    """Write the export that the parsed command asks for. Raises ConfigError, ShardError."""
    exporter = EXPORTERS[arguments.kind]
    options = option_values(arguments, exporter, but=_OURS)
    shards = expand_shards(arguments.shards)
    if not shards:
        raise ConfigError(f"no .tar in {' '.join(arguments.shards)}: name shards")
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    folder = ExportFolder(arguments.out, counts)
    exporter(_watched(shards, totals), folder, counts, **options)
    shown = {name: counts[name] for name in sorted(counts)}
    said = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}  # paths differ by machine
    folder.finish({"kind": arguments.kind, "options": said, **totals, "counts": shown, "shards": [s.name for s in shards]})
    print(f"{arguments.out}: {totals['images']} images, {totals['masks']} masks")
    if shown:
        print("counted: " + ", ".join(f"{count} {name}" for name, count in shown.items()))


def _watched(shards: list[Path], totals: Counter[str]) -> Iterator[Sample]:
    totals.update(images=0, masks=0)
    console = Console(stderr=True)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("writing", total=None)
        for sample in iterate_samples(shards):
            yield sample
            totals.update(images=1, masks=len(sample.record.masks))
            progress.update(task, description=f"{totals['images']} images")
