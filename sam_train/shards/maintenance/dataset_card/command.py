"""`sam-data card SHARDS... --out DIR --name NAME`: README.md, croissant.json and figures of a finished data set."""

from __future__ import annotations

import argparse
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sam_train.errors import ConfigError, ShardError
from sam_train.files import atomic_write_bytes
from sam_train.shards.maintenance.dataset_card.croissant import DatasetDescription, croissant
from sam_train.shards.maintenance.dataset_card.facts import File, read_dataset_facts
from sam_train.shards.maintenance.parallel import add_workers, map_shards
from sam_train.shards.maintenance.statistics.measure import Statistics, measure_shard
from sam_train.shards.maintenance.statistics.page import as_document
from sam_train.shards.reader import expand_shards

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_TEXT_OPTIONS = {
    "description": "description of the data set, a sentence or more",
    "license": "its licence: an SPDX identifier or a URL",
    "url": "web page of the data set",
    "creator": "creator of the data set",
    "cite-as": "citation",
    "version": "version of the data set (default 1.0.0)",
    "published": "date of publication, such as 2026-11-22",
}


def add_card(commands: Commands) -> None:
    """Add the command `card` and its options."""
    about = "Describe a finished data set: DIR/README.md, DIR/croissant.json (JSON-LD), figures and their numbers."
    parser = commands.add_parser("card", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the card, best that of the shards")
    parser.add_argument("--name", required=True, metavar="TEXT", help="name of the data set")
    for option, meaning in _TEXT_OPTIONS.items():
        default = "1.0.0" if option == "version" else ""
        parser.add_argument(f"--{option}", default=default, metavar="TEXT", help=meaning)
    parser.add_argument("--files-at", default="", metavar="URL", help="URL of the folder with the files; default: paths from DIR")
    add_workers(parser)
    parser.set_defaults(run=run_card)


def run_card(arguments: argparse.Namespace) -> None:
    """Write the card for the parsed options. Raises ConfigError; ShardError for a data set that is not finished."""
    from sam_train.shards.maintenance.dataset_card.readme import (
        readme,  # matplotlib and jinja2: the other commands start without them
    )
    from sam_train.shards.maintenance.statistics.figures import draw_all

    if arguments.published and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", arguments.published):
        raise ConfigError(f"--published is {arguments.published!r}, expected a date such as 2026-11-22")
    names = [option.replace("-", "_") for option in _TEXT_OPTIONS]
    description = DatasetDescription(name=arguments.name, **{name: getattr(arguments, name) for name in names})
    shards = expand_shards(arguments.shards)
    facts, statistics = read_dataset_facts(shards), Statistics()
    if not facts.num_masks:
        raise ShardError(f"no mask in {len(shards)} shards: there is nothing to describe")
    for _, part in map_shards(measure_shard, shards, workers=arguments.workers, what="measuring"):
        statistics.add(part)
    drawings = draw_all(statistics)
    for drawing in drawings:
        atomic_write_bytes(arguments.out / f"{drawing.name}.png", drawing.png)
    atomic_write_bytes(arguments.out / "stats.json", _json(as_document(statistics)))
    atomic_write_bytes(arguments.out / "README.md", readme(description, facts, statistics, drawings).encode())
    address_of = partial(_address, out=arguments.out, files_at=arguments.files_at)
    atomic_write_bytes(arguments.out / "croissant.json", _json(croissant(description, facts, address_of)))
    print(f"{facts.num_images} images, {facts.num_masks} masks: {arguments.out / 'README.md'}, croissant.json")


def _address(file: File, *, out: Path, files_at: str) -> str:
    if files_at:
        return f"{files_at.rstrip('/')}/{file.path.name}"
    return Path(os.path.relpath(file.path.resolve(), out.resolve())).as_posix()


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
