"""`sam-data COMMAND ...`: what can be done with shards without a model.

A command is a module with one function that adds its parser and names, by `set_defaults(run=...)`, what it does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sam_train.errors import exit_with_message
from sam_train.shards.exporters.command import add_export
from sam_train.shards.importers.command import add_import
from sam_train.shards.maintenance.dataset_card.command import add_card
from sam_train.shards.maintenance.dedupe import add_dedupe
from sam_train.shards.maintenance.merge_tables import add_table
from sam_train.shards.maintenance.repair import add_repair
from sam_train.shards.maintenance.split import add_split
from sam_train.shards.maintenance.statistics.command import add_stats
from sam_train.shards.maintenance.validate import add_validate

COMMANDS = (add_import, add_validate, add_repair, add_stats, add_dedupe, add_split, add_table, add_card, add_export)


@exit_with_message
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on `argv` (the process's own by default). An expected error ends it with a message and code 1."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)


def parser() -> argparse.ArgumentParser:
    """The command line with all its commands."""
    root = argparse.ArgumentParser(prog="sam-data", description="Shards: made from data sets, checked, described.")
    commands = root.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(commands)
    return root
