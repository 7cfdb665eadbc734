"""Class numbers of an export: those of a file, those of the imported data set, or names in alphabetical order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sam_train.shards.class_names import UNNAMED_CLASS, ClassNumbering, read_class_names
from sam_train.shards.manifest import read_categories
from sam_train.shards.mask_table import mask_table_path
from sam_train.shards.reader import iterate_samples


def number_classes(shards: Sequence[Path], *, first: int, names: Path | None = None, consecutive: bool = False) -> ClassNumbering:
    """Return the numbers of the classes of all masks of the shards, the same for every split of a data set.

    They are those of the file `names`. Without it, those of the imported data set, unused classes included, if the manifests
    list it: as they are if none is below `first` and they need not be `consecutive`, else their ranks from `first`. Names that it
    lacks follow in alphabetical order, and masks without a name come last. Raises ShardError for an invalid manifest or file of
    names.
    """
    if names is not None:
        return ClassNumbering(read_class_names(names))
    listed = read_categories(shards)
    if consecutive or any(number < first for number in listed):
        listed = dict(enumerate(listed.values(), start=first))
    used = {name or UNNAMED_CLASS for shard in shards for name in _names(shard)}
    numbered = {number: name or UNNAMED_CLASS for number, name in listed.items()}
    following = max(numbered, default=first - 1) + 1
    others = sorted(used - set(numbered.values()), key=lambda name: (name == UNNAMED_CLASS, name))
    return ClassNumbering(numbered | dict(enumerate(others, start=following)))


def _names(shard: Path) -> Iterable[str]:
    """Return the class names of a shard's masks, from its table if it has one."""
    from pyarrow import parquet

    path = mask_table_path(shard)
    if path.is_file() and "name" in parquet.read_schema(path).names:
        return set(parquet.read_table(path, columns=["name"])["name"].to_pylist())
    return {mask.name for sample in iterate_samples([shard]) for mask in sample.record.masks}
