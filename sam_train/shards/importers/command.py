"""`sam-data import KIND --out DIR ...`: a data set to shards (a command of `sam_train.cli.data_command`)."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.options import add_options, option_values
from sam_train.shards.shard_set_writer import ShardSetWriter
from sam_train.shards.split_hash import is_held_out

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


_IN_RECORDS = ("name", "names")
"""Options that a manifest does not tell, as each mask does. Paths are not told because they differ by machine."""


def add_import(commands: Commands) -> None:
    """`import` and its kinds, whose options are the importers' signatures."""
    kinds = commands.add_parser("import", help="write a data set as shards").add_subparsers(dest="kind", required=True)
    for kind, importer in IMPORTERS.items():
        about = (inspect.getdoc(importer) or "").partition("\n\n")
        sub = kinds.add_parser(kind, help=about[0], description=about[0], epilog=about[2])
        add_options(sub, importer, but=("counts",))
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
        sub.add_argument("--images-per-shard", type=int, default=50, metavar="N")
        sub.add_argument("--holdout", type=float, default=0.0, metavar="FRACTION", help="write OUT/train and OUT/heldout")
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the hash that splits")
        sub.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> None:
    """Write the shards that the parsed command asks for. Raises ConfigError, ShardError."""
    if not 0 <= arguments.holdout < 1:
        raise ConfigError(f"--holdout is the fraction of images held out, from 0 up to but not 1, got {arguments.holdout}")
    if arguments.images_per_shard < 1:
        raise ConfigError(f"--images-per-shard must be 1 or more, got {arguments.images_per_shard}")
    options = option_values(arguments, IMPORTERS[arguments.kind], but=("counts",))
    counts: Counter[str] = Counter()
    samples = IMPORTERS[arguments.kind](**options, counts=counts)
    shelves = _shelves(arguments, options)
    _fill(shelves, _with_counts(samples, counts), holdout=arguments.holdout, seed=arguments.seed)
    said = "counted: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) if counts else ""
    _tell(shelves, said)
    if said:
        print(said)


def _shelves(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, ShardSetWriter]:
    """Split -> shelf; without a holdout the one split is called ""."""
    provenance = {
        "stage": "import",
        "importer": arguments.kind,
        "options": {name: value for name, value in options.items() if not isinstance(value, Path) and name not in _IN_RECORDS},
    }
    if not arguments.holdout:
        return {"": ShardSetWriter(arguments.out, arguments.images_per_shard, provenance)}
    split_by = {"holdout": arguments.holdout, "seed": arguments.seed}
    return {
        split: ShardSetWriter(arguments.out / split, arguments.images_per_shard, {**provenance, **split_by, "split": split})
        for split in ("train", "heldout")
    }


def _fill(
    shelves: dict[str, ShardSetWriter], samples: Iterable[tuple[ImageRecord, bytes, Counter[str]]], *, holdout: float, seed: int
) -> None:
    console = Console(stderr=True)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("reading", total=None)
        for record, jpeg, counts in samples:
            split = "" if not holdout else "heldout" if is_held_out(record.key, holdout=holdout, seed=seed) else "train"
            shelves[split].add(record, jpeg, counts)
            progress.update(task, description=f"{sum(shelf.num_images for shelf in shelves.values())} images")
        for shelf in shelves.values():
            shelf.close()


def _tell(shelves: dict[str, ShardSetWriter], said: str) -> None:
    """Raises ConfigError for a split, or a whole import, without an image."""
    for split, shelf in shelves.items():
        if not shelf.num_images and any(other.num_images for other in shelves.values()):
            raise ConfigError(f"no image fell into {split}: choose another --seed or --holdout")
        if not shelf.num_images:
            raise ConfigError(f"the data set gave no image, nothing was written; {said or 'it is empty'}")
        kept = f" ({shelf.num_kept} were already there)" if shelf.num_kept else ""
        print(f"{shelf.folder}: {shelf.num_images} images, {shelf.num_masks} masks, {shelf.num_shards} shards{kept}")


def _with_counts(
    samples: Iterator[tuple[ImageRecord, bytes]], counts: Counter[str]
) -> Iterator[tuple[ImageRecord, bytes, Counter[str]]]:
    """Each sample with what the importer counted until it came; the last also with what was counted after it.

    So a sample is held back until the next is there.
    """
    held: tuple[ImageRecord, bytes, Counter[str]] | None = None
    before: Counter[str] = Counter()
    for record, jpeg in samples:
        if held is not None:
            yield held
        held, before = (record, jpeg, counts - before), counts.copy()
    if held is not None:
        yield (*held[:2], held[2] + (counts - before))
