"""Reading shards: names to files, tars to samples."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand
import webdataset as wds

from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as it lies in a shard: JPEG bytes undecoded, record parsed."""

    shard: str
    jpeg: bytes
    record: ImageRecord


def expand_shards(patterns: str | Sequence[str]) -> list[Path]:
    """Paths, globs, brace ranges and folders to the tar files they name, sorted, each once.

    Raises ConfigError when a pattern names nothing.
    """
    paths: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for expanded in braceexpand.braceexpand(str(pattern)):
            found = sorted(Path(expanded).glob("*.tar")) if Path(expanded).is_dir() else [Path(p) for p in glob.glob(expanded)]
            if not found:
                raise ConfigError(f"no shard matches {expanded!r}: expected a .tar, a glob, a brace range or a folder of .tar files")
            paths.update(found)
    if not paths:
        raise ConfigError("no shards were named: give at least one .tar, glob, brace range or folder")
    return sorted(paths)


def iterate_samples(shards: Sequence[Path]) -> Iterator[Sample]:
    """Every sample of every shard, in order.

    Raises ShardError for a torn tar, a half pair, or a record that the schema does not know: what is skipped
    and what ends the run is the caller's decision.
    """
    for shard in shards:
        yield from _iterate_shard(shard)


def _iterate_shard(shard: Path) -> Iterator[Sample]:
    if not shard.is_file():
        raise ShardError("no such shard", shard=str(shard))
    stream = wds.tarfile_samples([{"url": str(shard)}], handler=wds.reraise_exception)
    while True:
        try:
            sample = next(stream)
        except StopIteration:
            return
        except (OSError, EOFError, ValueError) as error:  # tarfile.ReadError is an OSError
            raise ShardError(f"the tar is torn or no tar: {error}; write the shard again", shard=str(shard)) from error
        key = sample["__key__"].removeprefix("./")
        if "jpg" not in sample or "json" not in sample:
            present = sorted(k for k in sample if not k.startswith("__"))
            raise ShardError(f"expected adjacent {key}.jpg and {key}.json, found {present}", shard=str(shard), key=key)
        yield Sample(shard=str(shard), jpeg=sample["jpg"], record=ImageRecord.from_json(sample["json"], key=key, shard=str(shard)))
