"""`sam-data import KIND --out DIR ...`: convert a data set to shards (a command of `sam_train.cli.data_command`)."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards.console import format_counts, show_image_count
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.options import add_command_from_function, add_options, option_values
from sam_train.shards.shard_set_writer import ShardSetWriter
from sam_train.shards.split_hash import is_held_out

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_NO_OPTIONS = ("counts",)
"""Parameters of an importer that the command passes itself."""

_STORED_IN_RECORDS = ("name", "names")
"""Options that the manifest omits because each mask stores its name. Paths are omitted because they vary by machine."""

_STORED_NAMES = {"annotator": "person"}
_STORED_VALUES = {"skip": "leave_out"}
"""Options and values that manifests store under their names of earlier versions, so that an old import can be resumed."""


def add_import(commands: Commands) -> None:
    """Add `import` and its kinds, whose options come from the signatures of the importers."""
    about = "Convert a data set to shards."
    kinds = commands.add_parser("import", help=about, description=about).add_subparsers(dest="kind", required=True)
    for kind, importer in IMPORTERS.items():
        parser = add_command_from_function(kinds, kind, importer)
        add_options(parser, importer, exclude=_NO_OPTIONS)
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the shards.")
        parser.add_argument("--images-per-shard", type=int, default=50, metavar="N", help="Images in each shard. Default: 50.")
        holdout = "Fraction of images to hold out: OUT/train and OUT/heldout are written. Default: 0, no split."
        parser.add_argument("--holdout", type=float, default=0.0, metavar="FRACTION", help=holdout)
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of the hash that splits. Default: 0.")
        parser.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> None:
    """Write the shards of the parsed command. Raises ConfigError and ShardError."""
    if not 0 <= arguments.holdout < 1:
        raise ConfigError(f"--holdout is {arguments.holdout}: expected the fraction of held-out images, at least 0 and below 1")
    if arguments.images_per_shard < 1:
        raise ConfigError(f"--images-per-shard must be 1 or more, got {arguments.images_per_shard}")
    options = option_values(arguments, IMPORTERS[arguments.kind], exclude=_NO_OPTIONS)
    counts: Counter[str] = Counter()
    samples = IMPORTERS[arguments.kind](**options, counts=counts)
    writers = _writers_by_split(arguments, options)
    _write_splits(writers, _with_counts(samples, counts), holdout=arguments.holdout, seed=arguments.seed)
    _print_summary(writers, format_counts(counts))


def _writers_by_split(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, ShardSetWriter]:
    """Return a writer per split; without --holdout the only split is called ""."""
    provenance = {"stage": "import", "importer": arguments.kind, "options": _stored_options(options)}
    if not arguments.holdout:
        return {"": ShardSetWriter(arguments.out, arguments.images_per_shard, provenance)}
    split_by = {"holdout": arguments.holdout, "seed": arguments.seed}
    return {
        split: ShardSetWriter(arguments.out / split, arguments.images_per_shard, {**provenance, **split_by, "split": split})
        for split in ("train", "heldout")
    }


def _stored_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as manifests store them."""
    return {
        _STORED_NAMES.get(name, name): _STORED_VALUES.get(value, value) if isinstance(value, str) else value
        for name, value in options.items()
        if not isinstance(value, Path) and name not in _STORED_IN_RECORDS
    }


def _write_splits(
    writers: dict[str, ShardSetWriter], samples: Iterable[tuple[ImageRecord, bytes, Counter[str]]], *, holdout: float, seed: int
) -> None:
    with show_image_count("reading") as show:
        for record, jpeg, counts in samples:
            split = "" if not holdout else "heldout" if is_held_out(record.key, holdout=holdout, seed=seed) else "train"
            writers[split].add(record, jpeg, counts)
            show(sum(writer.num_images for writer in writers.values()))
        for writer in writers.values():
            writer.close()


def _print_summary(writers: dict[str, ShardSetWriter], counts: str) -> None:
    """Print one line per split and the counts. Raises ConfigError if a split, or the whole import, has no image."""
    for split, writer in writers.items():
        if not writer.num_images and any(other.num_images for other in writers.values()):
            raise ConfigError(f"no image fell into {split}: choose another --seed or --holdout")
        if not writer.num_images:
            raise ConfigError(f"the data set has no image to import, nothing was written; {counts or 'it is empty'}")
        reused = f" ({writer.num_reused_shards} already existed)" if writer.num_reused_shards else ""
        print(f"{writer.folder}: {writer.num_images} images, {writer.num_masks} masks, {writer.num_shards} shards{reused}")
    if counts:
        print(counts)


def _with_counts(
    samples: Iterator[tuple[ImageRecord, bytes]], counts: Counter[str]
) -> Iterator[tuple[ImageRecord, bytes, Counter[str]]]:
    """Yield each sample with what the importer counted for it; the last one also with what was counted after it.

    Therefore a sample is delayed until the next one is available.
    """
    pending: tuple[ImageRecord, bytes, Counter[str]] | None = None
    before: Counter[str] = Counter()
    for record, jpeg in samples:
        if pending is not None:
            yield pending
        pending, before = (record, jpeg, counts - before), counts.copy()
    if pending is not None:
        yield (*pending[:2], pending[2] + (counts - before))
