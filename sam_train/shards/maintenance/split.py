"""`sam-data split SHARDS... --out DIR --fractions train=0.9 val=0.1`: one set to several, by a hash of each key."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from sam_train.errors import ConfigError, ShardError
from sam_train.records import KEY_PATTERN
from sam_train.shards.index import index_shard
from sam_train.shards.maintenance.dedupe import add_threshold, check_threshold
from sam_train.shards.maintenance.duplicate_groups import DuplicateGroups
from sam_train.shards.maintenance.parallel import add_workers
from sam_train.shards.maintenance.perceptual_hash import hash_images
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.shard_set_writer import ShardSetWriter
from sam_train.shards.split_hash import assign_split

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


def add_split(commands: Commands) -> None:
    """The command and its options."""
    about = "write shards as several sets; which one an image falls into depends on its key alone"
    after = "train=0.8 heldout=0.2 is the split that sam-data import --holdout 0.2 makes with the same seed."
    parser = commands.add_parser("split", help=about, description=about, epilog=after)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for each split will be in it")
    parser.add_argument(
        "--fractions", nargs="+", required=True, metavar="NAME=FRACTION", help="names and shares, which add up to 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the hash")
    parser.add_argument("--images-per-shard", type=int, default=50, metavar="N")
    together = "keep pictures that are near-duplicates in one split, that of the least of their keys"
    parser.add_argument("--together", choices=("dedupe",), help=together)
    add_threshold(parser)
    add_workers(parser)
    parser.set_defaults(run=run_split)


def run_split(arguments: argparse.Namespace) -> None:
    """Write the splits that the parsed command asks for, or what is missing of them. Raises ConfigError, ShardError."""
    fractions = parse_fractions(arguments.fractions)
    check_threshold(arguments.threshold)
    if arguments.images_per_shard < 1:
        raise ConfigError(f"--images-per-shard must be 1 or more, got {arguments.images_per_shard}")
    shards = expand_shards(arguments.shards)
    _check_apart(shards, [arguments.out / name for name in fractions])
    splits = _splits(arguments, shards, fractions)
    shelves = _shelves(arguments, fractions)
    _fill(shelves, shards, splits)
    for shelf in shelves.values():
        kept = f" ({shelf.num_reused_shards} already existed)" if shelf.num_reused_shards else ""
        share = f"{shelf.num_images / len(splits):.1%}"
        print(f"{shelf.folder}: {shelf.num_images} images ({share}), {shelf.num_masks} masks, {shelf.num_shards} shards{kept}")


def parse_fractions(given: Sequence[str]) -> dict[str, float]:
    """["train=0.9", "val=0.1"] to numbers by name. Raises ConfigError."""
    fractions: dict[str, float] = {}
    for item in given:
        name, _, number = item.partition("=")
        try:
            fraction = float(number)
        except ValueError:
            fraction = math.nan
        if not KEY_PATTERN.fullmatch(name) or not 0 < fraction <= 1 or name in fractions:
            raise ConfigError(f"--fractions {item!r}: expected NAME=FRACTION, each name once, a fraction above 0 and up to 1")
        fractions[name] = fraction
    if not math.isclose(total := math.fsum(fractions.values()), 1, abs_tol=1e-9):
        raise ConfigError(f"--fractions add up to {total:g}, not to 1: name a split for the rest too")
    return fractions


def duplicate_keys(shards: Sequence[Path], *, threshold: int, workers: int) -> dict[str, str]:
    """Key -> least key of those that a chain of near-duplicates leads to; only where that is another."""
    prints = hash_images(shards, workers=workers)
    components = DuplicateGroups.from_fingerprints(prints.fingerprints, threshold).components().tolist()
    least: dict[int, str] = {}
    for place, component in zip(prints.places, components, strict=True):
        least[component] = min(place.key, least.get(component, place.key))
    pairs = ((place.key, least[component]) for place, component in zip(prints.places, components, strict=True))
    return {key: other for key, other in pairs if key != other}


def _splits(arguments: argparse.Namespace, shards: Sequence[Path], fractions: Mapping[str, float]) -> dict[str, str]:
    """Key -> name of its split."""
    keys, stands_for = _all_keys(shards), {}
    if arguments.together:
        stands_for = duplicate_keys(shards, threshold=arguments.threshold, workers=arguments.workers)
    splits = {key: assign_split(stands_for.get(key, key), fractions, seed=arguments.seed) for key in keys}
    if empty := set(fractions) - set(splits.values()):
        raise ConfigError(f"no image fell into {', '.join(sorted(empty))}: choose another --seed or larger fractions")
    return splits


def _shelves(arguments: argparse.Namespace, fractions: Mapping[str, float]) -> dict[str, ShardSetWriter]:
    provenance = {"stage": "split", "fractions": dict(fractions), "seed": arguments.seed}
    if arguments.together:
        provenance |= {"together": arguments.together, "threshold": arguments.threshold}
    return {
        name: ShardSetWriter(arguments.out / name, arguments.images_per_shard, {**provenance, "split": name})
        for name in fractions
    }


def _check_apart(shards: Sequence[Path], folders: Sequence[Path]) -> None:
    sources = {shard.resolve().parent for shard in shards}
    for folder in folders:
        if folder.resolve() in sources:
            raise ConfigError(f"{folder} holds shards that are to be split: name another --out")


def _all_keys(shards: Sequence[Path]) -> list[str]:
    keys = [entry.key for shard in shards for entry in index_shard(shard)]
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise ShardError(f"{len(twice)} keys come twice, the first is {twice[0]}: sam-data repair keeps one of each")
    return keys


def _fill(shelves: Mapping[str, ShardSetWriter], shards: Sequence[Path], splits: Mapping[str, str]) -> None:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("splitting", total=len(splits))
        for sample in iterate_samples(shards):
            shelves[splits[sample.record.key]].add(sample.record, sample.jpeg, Counter())
            progress.advance(task)
        for shelf in shelves.values():
            shelf.close()
