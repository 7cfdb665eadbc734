"""`sam-data import KIND --out DIR ...`: convert a data set to shards (a command of `sam_train.cli.data_command`)."""

from __future__ import annotations

import argparse
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sam_train.errors import ConfigError, ShardError
from sam_train.records import KEY_PATTERN, ImageRecord
from sam_train.shards.console import format_counts, show_image_count
from sam_train.shards.groups import GROUP_BY_HELP, GroupBy
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.manifest import done_shards
from sam_train.shards.options import add_command_from_function, add_options, option_values
from sam_train.shards.shard_set_writer import ShardSetWriter
from sam_train.shards.split_hash import is_held_out

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_STORED_IN_RECORDS = ("name", "names")
"""Options that the manifest omits because each mask stores its name. Paths are omitted because they vary by machine."""
_SHOWN = 20


def add_import(commands: Commands) -> None:
    """Add `import` and its kinds, whose options come from the signatures of the importers."""
    about = "Convert a data set to shards."
    contract = "Each file found and each annotation read is imported, refused by name, or counted by reason."
    root = commands.add_parser("import", help=about, description=about, epilog=contract)
    kinds = root.add_subparsers(dest="kind", required=True)
    for kind, importer in IMPORTERS.items():
        parser = add_command_from_function(kinds, kind, importer)
        loss = (
            "An import without masks, or in which one rule leaves out more than half of them, is an error that names the option."
        )
        parser.epilog = f"{parser.epilog}\n\n{contract} {loss}"
        add_options(parser, importer, exclude=())
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the shards.")
        parser.add_argument("--images-per-shard", type=int, default=50, metavar="N", help="Images in each shard. Default: 50.")
        holdout = "Fraction of images to hold out: OUT/train and OUT/heldout are written. Default: 0, no split."
        parser.add_argument("--holdout", type=float, default=0.0, metavar="FRACTION", help=holdout)
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of the hash that splits. Default: 0.")
        parser.add_argument("--group-by", metavar="N|REGEX", help=GROUP_BY_HELP)
        folders = "Write a set per first folder of the images' paths, such as OUT/train, OUT/valid and OUT/test."
        parser.add_argument("--split-folders", action="store_true", help=folders)
        loss = "Accept an import without masks, or in which one rule leaves out more than half of them."
        parser.add_argument("--allow-loss", action="store_true", help=loss)
        parser.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> None:
    """Write the shards of the parsed command. Raises ConfigError and ShardError."""
    if not 0 <= arguments.holdout < 1:
        raise ConfigError(f"--holdout is {arguments.holdout}: expected the fraction of held-out images, at least 0 and below 1")
    if arguments.images_per_shard < 1:
        raise ConfigError(f"--images-per-shard must be 1 or more, got {arguments.images_per_shard}")
    if arguments.holdout and arguments.split_folders:
        raise ConfigError("--holdout and --split-folders exclude each other: one split is made by a hash, the other by folders")
    if arguments.group_by and not arguments.holdout:
        raise ConfigError("--group-by keeps groups in one split: give --holdout as well")
    importer = IMPORTERS[arguments.kind]
    options = option_values(arguments, importer, exclude=())
    report = ImportReport()
    splits = _Splits(arguments, _provenance(arguments, importer, options), report)
    try:
        splits.write(importer(**options, report=report))
    except _LossError as error:
        splits.discard()
        raise ShardError(str(error)) from error
    splits.print_summary()


class _LossError(ShardError):
    """The import leaves out so much that its shards are of no use."""


def _provenance(arguments: argparse.Namespace, importer: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what manifests store about the import: options that are not the default, without paths."""
    parameters = inspect.signature(importer).parameters
    stored = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if not isinstance(value, Path) and name not in _STORED_IN_RECORDS and value != parameters[name].default
    }
    return {"stage": "import", "importer": arguments.kind, "options": stored}


class _Splits:
    """Writers of the splits of an import by name; without a split the only one is called ""."""

    def __init__(self, arguments: argparse.Namespace, provenance: dict[str, Any], report: ImportReport) -> None:
        self._arguments, self._provenance, self._report = arguments, provenance, report
        self._group_by = GroupBy(arguments.group_by) if arguments.group_by else None
        self._writers: dict[str, ShardSetWriter] = {}
        self._is_split = bool(arguments.holdout or arguments.split_folders)
        self._check_out()
        for split in ("train", "heldout") if arguments.holdout else () if arguments.split_folders else ("",):
            self._writer(split)

    def write(self, samples: Iterator[tuple[ImageRecord, bytes]]) -> None:
        """Write all samples. Raises _LossError if the import loses most masks."""
        with show_image_count("reading") as show:
            for record, jpeg, counts, skipped in _with_counts(samples, self._report):
                self._writer(self._split_of(record)).add(record, jpeg, counts, skipped)
                show(self._total("num_images"))
            if not self._total("num_images"):
                counted = format_counts(self._report.counts)
                raise ConfigError(f"the data set has no image to import, nothing was written; {counted or 'it is empty'}")
            if not self._arguments.allow_loss:
                try:
                    self._report.check_loss(self._total("num_masks"))
                except ShardError as error:
                    raise _LossError(str(error)) from error
            for writer in self._writers.values():
                writer.close()

    def discard(self) -> None:
        """Remove the shards that this import has written."""
        for writer in self._writers.values():
            writer.discard()

    def print_summary(self) -> None:
        """Print the sets, the counts, and the first entries that were left out. Raises ConfigError for an empty split."""
        for split, writer in self._writers.items():
            if not writer.num_images:
                raise ConfigError(f"no image fell into {split}: choose another --seed or --holdout")
            reused = f" ({writer.num_reused_shards} already existed)" if writer.num_reused_shards else ""
            print(f"{writer.folder}: {writer.num_images} images, {writer.num_masks} masks, {writer.num_shards} shards{reused}")
        if self._report.counts:
            print(format_counts(self._report.counts))
        for name, reason in list(self._report.left_out.items())[:_SHOWN]:
            print(f"left out: {name}: {reason}")
        if len(self._report.left_out) > _SHOWN:
            print(f"... and {len(self._report.left_out) - _SHOWN} more; the manifests list all under 'skipped'")

    def _total(self, name: str) -> int:
        return sum(getattr(writer, name) for writer in self._writers.values())

    def _check_out(self) -> None:
        """Raise ConfigError if the folder holds an import with another split: training on both would mix their images."""
        out: Path = self._arguments.out
        others = [out] if self._is_split else sorted(path for path in out.glob("*") if path.is_dir())
        for folder in others:
            if done_shards(folder):
                problem = "without a split" if self._is_split else f"in the split {folder.name!r}"
                raise ConfigError(f"{out} holds an import {problem}: give an empty --out, so that no image is in two sets")

    def _writer(self, split: str) -> ShardSetWriter:
        if split not in self._writers:
            how: dict[str, Any] = {"split_folders": True} if self._arguments.split_folders else {}
            if self._arguments.holdout:
                how = {"holdout": self._arguments.holdout, "seed": self._arguments.seed}
                how |= {"group_by": self._arguments.group_by} if self._arguments.group_by else {}
            provenance = {**self._provenance, **how, "split": split} if split else self._provenance
            self._writers[split] = ShardSetWriter(
                self._arguments.out / split, self._arguments.images_per_shard, provenance, self._report.categories
            )
        return self._writers[split]

    def _split_of(self, record: ImageRecord) -> str:
        if self._arguments.split_folders:
            folder, *rest = PurePosixPath(record.source_file).parts
            if not rest or not KEY_PATTERN.fullmatch(folder):
                raise ConfigError(f"--split-folders: {record.source_file!r} is not in a folder whose name can name a set")
            return folder
        if not self._arguments.holdout:
            return ""
        hashed = self._group_by.group(record.source_file) if self._group_by else record.key
        return "heldout" if is_held_out(hashed, holdout=self._arguments.holdout, seed=self._arguments.seed) else "train"


def _with_counts(
    samples: Iterator[tuple[ImageRecord, bytes]], report: ImportReport
) -> Iterator[tuple[ImageRecord, bytes, Counter[str], dict[str, str]]]:
    """Yield each sample with what the importer counted and left out for it; the last one also with what came after it.

    Therefore a sample is delayed until the next one is available.
    """
    pending: tuple[ImageRecord, bytes, Counter[str], dict[str, str]] | None = None
    before: Counter[str] = Counter()
    num_before = 0
    for record, jpeg in samples:
        if pending is not None:
            yield pending
        skipped = dict(list(report.left_out.items())[num_before:]) if len(report.left_out) > num_before else {}
        pending, before, num_before = (record, jpeg, report.counts - before, skipped), report.counts.copy(), len(report.left_out)
    if pending is not None:
        record, jpeg, counts, skipped = pending
        yield record, jpeg, counts + (report.counts - before), skipped | dict(list(report.left_out.items())[num_before:])
