"""`sam-data stats SHARDS... --out DIR`: what a set is like, as the paper shows its own."""

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
    """The command and its options."""
    about = "draw masks per image, their sizes, shapes, centres and scores: DIR/stats.html, stats.json and a PNG a figure"
    parser = commands.add_parser("stats", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and the figures")
    parser.add_argument("--name", default="This set", metavar="TEXT", help="what the page calls the set")
    add_workers(parser)
    parser.set_defaults(run=run_stats)


def run_stats(arguments: argparse.Namespace) -> None:
    """Measure and draw what the parsed command names. Raises ConfigError; ShardError when there is no mask at all."""
    from sam_train.shards.maintenance.statistics.figures import draw_all  # matplotlib: the other commands start without it

    shards, whole = expand_shards(arguments.shards), Statistics()
    for _, part in map_shards(measure_shard, shards, workers=arguments.workers, what="measuring"):
        whole.add(part)
    if not whole.num_masks:
        left_out = "; ".join(f"{count} {reason}" for reason, count in whole.left_out.items())
        raise ShardError(f"no mask in {len(shards)} shards and {whole.num_images} images: nothing to draw. {left_out}".strip())
    drawings = draw_all(whole)
    for drawing in drawings:
        atomic_write_bytes(arguments.out / f"{drawing.name}.png", drawing.png)
    atomic_write_bytes(arguments.out / "stats.json", (json.dumps(as_document(whole), indent=1) + "\n").encode())
    atomic_write_bytes(arguments.out / "stats.html", render(whole, drawings, name=arguments.name).encode())
    for reason, count in sorted(whole.left_out.items()):
        print(f"left out: {count} {reason} (see sam-data validate)")
    print(f"{whole.num_images} images, {whole.num_masks} masks: {arguments.out / 'stats.html'}")
