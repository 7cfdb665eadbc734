"""`sam-data export KIND --shards ... --out DIR`: convert shards to another format (a command of `sam_train.cli.data_command`)."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sam_train.errors import ConfigError
from sam_train.shards.console import format_counts, show_image_count
from sam_train.shards.exporters import EXPORTERS
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.options import add_command_from_function, add_options, option_values
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.tar_members import Sample

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_NO_OPTIONS = ("samples", "folder", "counts", "shards")
"""Parameters of an exporter that the command passes itself."""


def add_export(commands: Commands) -> None:
    """Add `export` and its kinds, whose options come from the signatures of the exporters."""
    about = "Convert shards to the format of another tool."
    kinds = commands.add_parser("export", help=about, description=about).add_subparsers(dest="kind", required=True)
    for kind, exporter in EXPORTERS.items():
        parser = add_command_from_function(kinds, kind, exporter)
        add_options(parser, exporter, exclude=_NO_OPTIONS)
        shards = "Shards to export: .tar files, globs, brace ranges or folders."
        parser.add_argument("--shards", nargs="+", required=True, metavar="SHARDS", help=shards)
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the export.")
        parser.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> None:
    """Write the export of the parsed command. Raises ConfigError and ShardError."""
    exporter = EXPORTERS[arguments.kind]
    options = option_values(arguments, exporter, exclude=_NO_OPTIONS)
    shards = expand_shards(arguments.shards)
    if not shards:
        raise ConfigError(f"no .tar in {' '.join(arguments.shards)}: name shards")
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    folder = ExportFolder(arguments.out, counts)
    given = {"shards": shards} if "shards" in inspect.signature(exporter).parameters else {}
    exporter(_samples_with_progress(shards, totals), folder, counts, **given, **options)
    # The folder of a path varies by machine.
    reported = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    sorted_counts = {name: counts[name] for name in sorted(counts)}
    shard_names = [shard.name for shard in shards]
    folder.finish({"kind": arguments.kind, "options": reported, **totals, "counts": sorted_counts, "shards": shard_names})
    print(f"{arguments.out}: {totals['images']} images, {totals['masks']} masks")
    if counts:
        print(format_counts(counts))


def _samples_with_progress(shards: list[Path], totals: Counter[str]) -> Iterator[Sample]:
    """Yield the samples of all shards; count their images and masks in `totals` and show the number of images."""
    totals.update(images=0, masks=0)
    with show_image_count("writing") as show:
        for sample in iterate_samples(shards):
            yield sample
            totals.update(images=1, masks=len(sample.record.masks))
            show(totals["images"])
