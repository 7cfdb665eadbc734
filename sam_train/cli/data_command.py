"""`sam-data COMMAND ...`: work on shards that needs no model.

A command is a module with one function that adds its parser and names, by `set_defaults(run=...)`, the function that does the
work. Only the module of the given command is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from sam_train.cli.arguments import ArgumentParser
from sam_train.cli.handlers import load_handler

COMMANDS: Mapping[str, tuple[str, str]] = {
    "import": ("sam_train.shards.importers.command:add_import", "Convert a data set to shards."),
    "validate": (
        "sam_train.shards.maintenance.validate:add_validate",
        "Report all errors in shards; the exit code is 1 if there is one.",
    ),
    "repair": (
        "sam_train.shards.maintenance.repair:add_repair",
        "Write new shards with all samples of damaged ones that can be kept; manifests count what was dropped.",
    ),
    "stats": (
        "sam_train.shards.maintenance.statistics.command:add_stats",
        "Draw masks per image, their sizes, shapes, centres and scores: DIR/stats.html, stats.json and a PNG per figure.",
    ),
    "dedupe": ("sam_train.shards.maintenance.dedupe:add_dedupe", "Find images that occur twice, also resized or recompressed."),
    "split": (
        "sam_train.shards.maintenance.split:add_split",
        "Divide shards into several sets; the set of an image depends only on its key.",
    ),
    "table": (
        "sam_train.shards.maintenance.merge_tables:add_table",
        "Write one Parquet table of all masks: ids, areas, boxes, scores, class names, provenance and shard.",
    ),
    "card": (
        "sam_train.shards.maintenance.dataset_card.command:add_card",
        "Describe a finished data set: DIR/README.md, DIR/croissant.json (JSON-LD), figures and their numbers.",
    ),
    "export": ("sam_train.shards.exporters.command:add_export", "Convert shards to the format of another tool."),
}
"""The function that adds each command's parser, and its line in the help of `sam-data`."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command on `arguments`, the process's own by default. Raises SystemExit for a wrong command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser(given[:1]).parse_args(given)
    parsed.run(parsed)


def parser(wanted: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the command line with all commands; the options of those in `wanted` alone (all by default)."""
    root = ArgumentParser(
        prog="sam-data",
        description="Make shards from data sets, check, describe, repair and convert them.",
        epilog="examples:\n"
        "  sam-data import label_maps --images NUCLEI/images --labels NUCLEI/labels --out SHARDS\n"
        "  sam-data validate SHARDS",
    )
    root.add_version()
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (handler, summary) in COMMANDS.items():
        if wanted is None or name in wanted:
            load_handler(handler)(commands)
        else:
            commands.add_parser(name, help=summary)
    return root
