"""Reading shards sequentially: expansion of path patterns, and iteration over the samples of tars."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import braceexpand

from sam_train.errors import ConfigError, ShardError
from sam_train.shards.manifest import read_source_files
from sam_train.shards.tar_members import CORRUPT_TAR, Sample, locate_samples, open_local_shard, split_member_name


def expand_shards(patterns: str | Sequence[str], *, recursive: bool = False) -> list[Path]:
    """Expand paths, globs, brace ranges and folders to the tar files that they match, sorted, without duplicates.

    With `recursive`, folders are searched recursively. Raises ConfigError if a pattern matches no file.
    """
    paths: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for expanded in _expand_braces(str(pattern)):
            matches = _match_files(expanded, recursive=recursive)
            if not matches:
                expected = "a .tar, a glob, a brace range or a folder of .tar files"
                below = sorted({path.parent for path in Path(expanded).glob("*/*.tar")}) if Path(expanded).is_dir() else []
                hint = f"; name one of its folders with shards: {', '.join(map(str, below[:4]))}" if below else ""
                raise ConfigError(f"no shard matches {expanded!r}: expected {expected}{hint}")
            paths.update(matches)
    if not paths:
        raise ConfigError("no shards given: name at least one .tar, glob, brace range or folder")
    return sorted(paths)


def _expand_braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"{pattern!r} is not a valid brace range: {error}") from error


def _match_files(name: str, *, recursive: bool) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        return list(path.rglob("*.tar") if recursive else path.glob("*.tar"))
    # The name of an existing file may also be a valid pattern, such as run[1].tar.
    return [path] if path.is_file() else [Path(match) for match in glob.glob(name)]


def iterate_samples(shards: Sequence[Path]) -> Iterator[Sample]:
    """Yield every sample of every shard in order, each shard in one sequential pass (webdataset).

    Raises ShardError, before a shard's first sample, for everything that `locate_samples` rejects; later for a JPEG and a JSON
    that are not adjacent, and for a record that does not fit the schema. The caller decides whether to skip or to stop.
    """
    for shard in shards:
        with open_local_shard(shard) as stream:
            keys = list(locate_samples(stream, shard))
            stream.seek(0)
            source_files = read_source_files(shard)
            for sample in _stream(stream, shard, keys):
                name = source_files.get(sample.record.key, "")
                yield replace(sample, record=replace(sample.record, source_file=name)) if name else sample


def _stream(stream: BinaryIO, shard: Path, keys: Sequence[str]) -> Iterator[Sample]:
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

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
            message = f"{key}.jpg and {key}.json are not adjacent, as in Meta's own tars"
            remedy = f"write the samples in order by sam-data import sa1b --source {shard.parent} --out DIR, or sam-data repair"
            raise ShardError(f"{message}: {remedy}", shard=str(shard), key=key)
        yield Sample.from_bytes(shard, key, jpeg=group["jpg"], document=group["json"])
