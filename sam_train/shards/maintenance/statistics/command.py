"""`sam-data stats SHARDS... --out DIR`: statistics of a data set, in the figures of the paper."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sam_train.errors import ShardError
from sam_train.files import atomic_write_bytes
from sam_train.shards.maintenance.parallel import add_workers, map_shards
from sam_train.shards.maintenance.statistics.measure import Statistics, measure_shard
from sam_train.shards.maintenance.statistics.page import as_document, render
from sam_train.shards.reader import expand_shards

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


def add_stats(commands: Commands) -> None:
    """Add the command `stats` and its options."""
    about = "Draw masks per image, their sizes, shapes, centres and scores: DIR/stats.html, stats.json and a PNG per figure."
    parser = commands.add_parser("stats", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders (recursive)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and the figures")
    parser.add_argument("--name", default="This set", metavar="TEXT", help="name of the data set on the page")
    add_workers(parser)
    parser.set_defaults(run=run_stats)


def run_stats(arguments: argparse.Namespace) -> None:
    """Measure the shards of the parsed options and draw the figures. Raises ConfigError; ShardError if there is no mask."""
    from sam_train.shards.maintenance.statistics.figures import draw_all  # matplotlib: the other commands start without it

    shards, statistics = expand_shards(arguments.shards, recursive=True), Statistics()
    for _, part in map_shards(measure_shard, shards, workers=arguments.workers, what="measuring"):
        statistics.add(part)
    if not statistics.num_masks:
        excluded = "; ".join(f"{count} {reason}" for reason, count in statistics.left_out.items())
        raise ShardError(
            f"no mask in {len(shards)} shards and {statistics.num_images} images: nothing to draw. {excluded}".strip()
        )
    drawings = draw_all(statistics)
    for drawing in drawings:
        atomic_write_bytes(arguments.out / f"{drawing.name}.png", drawing.png)
    atomic_write_bytes(arguments.out / "stats.json", (json.dumps(as_document(statistics), indent=1) + "\n").encode())
    atomic_write_bytes(arguments.out / "stats.html", render(statistics, drawings, name=arguments.name).encode())
    for reason, count in sorted(statistics.left_out.items()):
        print(f"excluded: {count} {reason} (run sam-data validate)")
    print(f"{statistics.num_images} images, {statistics.num_masks} masks: {arguments.out / 'stats.html'}")
