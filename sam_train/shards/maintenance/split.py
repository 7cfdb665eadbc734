"""`sam-data split SHARDS... --out DIR --fractions train=0.9 val=0.1`: divide a data set by a hash of each key."""

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
from sam_train.shards.groups import GROUP_BY_HELP, GroupBy
from sam_train.shards.index import index_shard
from sam_train.shards.maintenance.dedupe import add_threshold, check_threshold
from sam_train.shards.maintenance.duplicate_groups import DuplicateGroups
from sam_train.shards.maintenance.parallel import add_workers
from sam_train.shards.maintenance.perceptual_hash import hash_images
from sam_train.shards.manifest import read_categories, read_source_files
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.shard_set_writer import ShardSetWriter
from sam_train.shards.split_hash import assign_split

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


def add_split(commands: Commands) -> None:
    """Add the command `split` and its options."""
    about = "Divide shards into several sets; the set of an image depends only on its key."
    after = "train=0.8 heldout=0.2 gives the same split as sam-data import --holdout 0.2 with the same seed."
    parser = commands.add_parser("split", help=about, description=about, epilog=after)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder in which each split gets a folder")
    parser.add_argument(
        "--fractions", nargs="+", required=True, metavar="NAME=FRACTION", help="names and fractions, which add up to 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the hash")
    parser.add_argument("--images-per-shard", type=int, default=50, metavar="N")
    together = "keep near-duplicate images in one split, that of the alphabetically first of their keys"
    parser.add_argument("--together", choices=("dedupe",), help=together)
    parser.add_argument("--group-by", metavar="N|REGEX", help=f"{GROUP_BY_HELP} Without a recorded path it applies to the key.")
    add_threshold(parser)
    add_workers(parser)
    parser.set_defaults(run=run_split)


def run_split(arguments: argparse.Namespace) -> None:
    """Write the splits of the parsed options; finished shards of an earlier run are kept. Raises ConfigError and ShardError."""
    fractions = parse_fractions(arguments.fractions)
    check_threshold(arguments.threshold)
    if arguments.together and arguments.group_by:
        raise ConfigError("--together and --group-by exclude each other: give the rule by which images stay together")
    if arguments.images_per_shard < 1:
        raise ConfigError(f"--images-per-shard must be 1 or more, got {arguments.images_per_shard}")
    shards = expand_shards(arguments.shards)
    _check_output_folders(shards, [arguments.out / name for name in fractions])
    splits = _assign_splits(arguments, shards, fractions)
    writers = _make_writers(arguments, fractions, read_categories(shards))
    _write_samples(writers, shards, splits)
    for writer in writers.values():
        kept = f" ({writer.num_reused_shards} already existed)" if writer.num_reused_shards else ""
        share = f"{writer.num_images / len(splits):.1%}"
        print(
            f"{writer.folder}: {writer.num_images} images ({share}), {writer.num_masks} masks, {writer.num_shards} shards{kept}"
        )


def parse_fractions(texts: Sequence[str]) -> dict[str, float]:
    """Parse ["train=0.9", "val=0.1"] to fractions by name. Raises ConfigError for invalid ones."""
    fractions: dict[str, float] = {}
    for item in texts:
        name, _, number = item.partition("=")
        try:
            fraction = float(number)
        except ValueError:
            fraction = math.nan
        if not KEY_PATTERN.fullmatch(name) or not 0 < fraction <= 1 or name in fractions:
            raise ConfigError(f"--fractions {item!r}: expected NAME=FRACTION, unique names, fractions above 0 and up to 1")
        fractions[name] = fraction
    if not math.isclose(total := math.fsum(fractions.values()), 1, abs_tol=1e-9):
        raise ConfigError(f"--fractions add up to {total:g}, expected 1: name a split for the rest as well")
    return fractions


def duplicate_keys(shards: Sequence[Path], *, threshold: int, workers: int) -> dict[str, str]:
    """Return key -> first key, alphabetically, of its chain of near-duplicates; only for keys where that is another one."""
    hashes = hash_images(shards, workers=workers)
    components = DuplicateGroups.from_fingerprints(hashes.fingerprints, threshold).components().tolist()
    first_keys: dict[int, str] = {}
    for location, component in zip(hashes.locations, components, strict=True):
        first_keys[component] = min(location.key, first_keys.get(component, location.key))
    pairs = ((location.key, first_keys[component]) for location, component in zip(hashes.locations, components, strict=True))
    return {key: other for key, other in pairs if key != other}


def _assign_splits(arguments: argparse.Namespace, shards: Sequence[Path], fractions: Mapping[str, float]) -> dict[str, str]:
    """Return key -> name of its split."""
    keys, hashed_keys = _all_keys(shards), {}
    if arguments.together:
        hashed_keys = duplicate_keys(shards, threshold=arguments.threshold, workers=arguments.workers)
    elif arguments.group_by:
        group_by, paths = GroupBy(arguments.group_by), {k: v for shard in shards for k, v in read_source_files(shard).items()}
        hashed_keys = {key: group_by.group(paths.get(key) or key) for key in keys}
    splits = {key: assign_split(hashed_keys.get(key, key), fractions, seed=arguments.seed) for key in keys}
    if empty := set(fractions) - set(splits.values()):
        raise ConfigError(f"no image fell into {', '.join(sorted(empty))}: choose another --seed or larger fractions")
    return splits


def _make_writers(
    arguments: argparse.Namespace, fractions: Mapping[str, float], categories: Mapping[int, str]
) -> dict[str, ShardSetWriter]:
    provenance = {"stage": "split", "fractions": dict(fractions), "seed": arguments.seed}
    if arguments.together:
        provenance |= {"together": arguments.together, "threshold": arguments.threshold}
    provenance |= {"group_by": arguments.group_by} if arguments.group_by else {}
    return {
        name: ShardSetWriter(arguments.out / name, arguments.images_per_shard, {**provenance, "split": name}, categories)
        for name in fractions
    }


def _check_output_folders(shards: Sequence[Path], folders: Sequence[Path]) -> None:
    sources = {shard.resolve().parent for shard in shards}
    for folder in folders:
        if folder.resolve() in sources:
            raise ConfigError(f"{folder} has shards that are to be split: give another --out")


def _all_keys(shards: Sequence[Path]) -> list[str]:
    keys = [entry.key for shard in shards for entry in index_shard(shard)]
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise ShardError(
            f"{len(repeated)} keys occur more than once, the first is {repeated[0]}: sam-data repair keeps one sample of each"
        )
    return keys


def _write_samples(writers: Mapping[str, ShardSetWriter], shards: Sequence[Path], splits: Mapping[str, str]) -> None:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("splitting", total=len(splits))
        for sample in iterate_samples(shards):
            writers[splits[sample.record.key]].add(sample.record, sample.jpeg, Counter())
            progress.advance(task)
        for writer in writers.values():
            writer.close()
