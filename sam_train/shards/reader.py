"""Reading shards: names to files, and tars to samples in one pass."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import braceexpand
from webdataset.tariterators import group_by_keys, tar_file_expander

from sam_train.errors import ConfigError, ShardError
from sam_train.shards.tar_members import CORRUPT_TAR, Sample, locate_samples, open_local_shard, split_member_name


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
    """Every sample of every shard, in order, each shard in one pass from its beginning to its end (webdataset).

    Raises ShardError for what `locate_samples` refuses, before a shard's first sample; for a pair that is not adjacent, and a
    record that the schema does not know: what is skipped and what ends the run is the caller's decision.
    """
    for shard in shards:
        with open_local_shard(shard) as stream:
            keys = list(locate_samples(stream, shard))
            stream.seek(0)
            yield from _stream(stream, shard, keys)


def _stream(stream: BinaryIO, shard: Path, keys: Sequence[str]) -> Iterator[Sample]:
    files = tar_file_expander(
        [{"url": str(shard), "stream": stream}], select_files=lambda name: split_member_name(name)[0] is not None
    )
    groups = group_by_keys(files, keys=split_member_name)
    for key in keys:
        try:
            group: dict[str, Any] = next(groups, {})
        except (OSError, ValueError, tarfile.TarError) as error:
            raise ShardError(f"{error}; {CORRUPT_TAR}", shard=str(shard)) from error
        if group.get("__key__") != key or not {"jpg", "json"} <= group.keys():
            raise ShardError(f"{key}.jpg and {key}.json are not adjacent: write the shard again", shard=str(shard), key=key)
        yield Sample.from_bytes(shard, key, jpeg=group["jpg"], document=group["json"])
