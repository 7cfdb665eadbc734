"""Reading shards: names to files, tars to samples."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand
from webdataset.tariterators import group_by_keys, tar_file_expander

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
        for expanded in _expand_braces(str(pattern)):
            found = _named_by(expanded)
            if not found:
                expected = "a .tar, a glob, a brace range or a folder of .tar files"
                raise ConfigError(f"no shard matches {expanded!r}: expected {expected}")
            paths.update(found)
    if not paths:
        raise ConfigError("no shards were named: give at least one .tar, glob, brace range or folder")
    return sorted(paths)


def _expand_braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{pattern!r} is no brace range: {error}") from error


def _named_by(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return list(path.glob("*.tar"))
    # A file may have a name that would also be a pattern, such as run[1].tar.
    return [path] if path.is_file() else [Path(match) for match in glob.glob(name)]


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
    _check_whole(shard)
    with shard.open("rb") as stream:
        samples = group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}]))
        while True:
            try:
                sample = next(samples, None)
            except (OSError, ValueError, tarfile.TarError) as error:
                raise ShardError(f"the tar does not read: {error}; write the shard again", shard=str(shard)) from error
            if sample is None:
                return
            yield _to_sample(sample, str(shard))


def _check_whole(shard: Path) -> None:
    """Raise ShardError unless the tar's members end in the zero blocks that close it.

    tarfile takes a shard that was cut between two members, or whose next header is garbage, for one that ends there.
    Only headers are read.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            tar.getmembers()
            end = tar.offset
        with shard.open("rb") as stream:
            stream.seek(end)
            closed = stream.read(2 * tarfile.BLOCKSIZE) == bytes(2 * tarfile.BLOCKSIZE)
    except (OSError, tarfile.TarError) as error:
        raise ShardError(f"the tar is torn or no tar: {error}; write the shard again", shard=str(shard)) from error
    if not closed:
        raise ShardError(f"the tar is torn: no member and no end at byte {end}; write the shard again", shard=str(shard))


def _to_sample(sample: dict[str, Any], shard: str) -> Sample:
    key = sample["__key__"].removeprefix("./")
    if "jpg" not in sample or "json" not in sample:
        present = sorted(k for k in sample if not k.startswith("__"))
        raise ShardError(f"expected adjacent {key}.jpg and {key}.json, found {present}", shard=shard, key=key)
    return Sample(shard=shard, jpeg=sample["jpg"], record=ImageRecord.from_json(sample["json"], key=key, shard=shard))
