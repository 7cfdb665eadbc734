"""Shards that lie elsewhere (`s3://`, `gs://`, `https://`, whatever fsspec reads), through a folder of bounded size.

A shard is fetched whole when its first sample is read, written whole or not at all, and held to its manifest's size and
SHA-256 where there is a manifest. What was not read for longest goes when room is needed. Any number of processes may share
the folder: each shard is fetched by one of them, the others wait; one that goes while it is open is read to its end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sam_train.errors import ConfigError, SamTrainError, ShardError
from sam_train.files import atomic_write
from sam_train.shards.index import ShardIndex, index_from_manifest, index_shard
from sam_train.shards.manifest import Manifest, manifest_path, parse_manifest
from sam_train.shards.remote import filesystem_for_url
from sam_train.shards.tar_members import open_local_shard

_TRIES = 10


class ShardCache:
    """Local copies of remote shards, at most `max_bytes` of them.

    Raises ConfigError for a folder that cannot be made and no room.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ConfigError(f"the cache of shards may hold {max_bytes} bytes: give it room for a few shards")
        self.folder, self.max_bytes = folder, max_bytes
        self._known: dict[Path, tuple[str, Manifest | None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def index(self, urls: Sequence[str]) -> list[ShardIndex | ShardError]:
        """The samples of each shard, or why there are none. Manifests are read together; without one the tar is fetched."""
        manifests = self._manifests(urls)
        found: list[ShardIndex | ShardError] = []
        for url, manifest in zip(urls, manifests, strict=True):
            try:
                if isinstance(manifest, ShardError):
                    raise manifest
                found.append(self._index(url, manifest))
            except ShardError as error:
                found.append(error)
        return found

    def open(self, local: Path) -> BinaryIO:
        """The bytes of a shard by the path that its index has. Raises ShardError when it cannot be fetched."""
        for _ in range(_TRIES):
            try:
                stream = local.open("rb")
            except FileNotFoundError:
                self._fetch(local)
                continue
            os.utime(stream.fileno())  # the order in which shards go
            return stream
        raise ShardError(
            f"it goes as soon as it comes: the cache of {self.max_bytes} bytes is too small", shard=self._known[local][0]
        )

    def open_cached_or_local(self, shard: Path) -> BinaryIO:
        """`open` for what this cache indexed, plain opening for the rest."""
        return self.open(shard) if shard in self._known else open_local_shard(shard)

    def _index(self, url: str, manifest: Manifest | None) -> ShardIndex:
        local = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{url.rpartition('/')[2]}"
        self._known[local] = url, manifest
        if manifest is not None and manifest.places is not None:
            return index_from_manifest(local, manifest, num_bytes=manifest.bytes)
        with self.open(local):
            return index_shard(local)

    def _manifests(self, urls: Sequence[str]) -> list[Manifest | ShardError | None]:
        if not urls:
            return []
        names = [url[: -len(Path(url).name)] + manifest_path(Path(Path(url).name)).name for url in urls]
        system = filesystem_for_url(urls[0])
        stripped = [system._strip_protocol(name) for name in names]
        answers: dict[str, Any] = system.cat(stripped, on_error="return") if len(stripped) > 1 else _one(system, stripped[0])
        return [_parsed(answers.get(name, FileNotFoundError(name)), url) for name, url in zip(stripped, urls, strict=True)]

    def _fetch(self, local: Path) -> None:
        url, manifest = self._known[local]
        with self._locked(f".{local.name}.lock"):
            if local.is_file():  # another process was faster
                return
            try:
                system = filesystem_for_url(url)
                size = int(system.info(url)["size"] or 0)
                if manifest is not None and size and size != manifest.bytes:
                    raise ShardError(f"{size} bytes there, {manifest.bytes} in its manifest: upload it again", shard=url)
                self._download(system, url, local, size or (manifest.bytes if manifest else 0), manifest)
            except SamTrainError:
                raise
            except Exception as error:  # each server's client has errors of its own, and few of them are OSErrors
                raise ShardError(f"cannot be fetched: {type(error).__name__}: {error}", shard=url) from error

    def _download(self, system: Any, url: str, local: Path, size: int, manifest: Manifest | None) -> None:
        digest, num_bytes = hashlib.sha256(), 0
        with self._locked(".room.lock"):
            self._make_room(size, url)
            writing = atomic_write(local)
            stream = writing.__enter__()
            stream.truncate(size)  # the room that this download takes, for others that look for room
        try:
            with system.open(url, "rb", block_size=1 << 22, cache_type="readahead") as remote:
                while block := remote.read(1 << 22):
                    stream.write(block)
                    digest.update(block)
                    num_bytes += len(block)
            if (size and num_bytes != size) or (manifest is not None and digest.hexdigest() != manifest.sha256):
                raise ShardError("what came is not what its manifest or its server says: upload it again", shard=url)
        except BaseException as error:
            writing.__exit__(type(error), error, error.__traceback__)
            raise
        writing.__exit__(None, None, None)

    def _make_room(self, size: int, url: str) -> None:
        """Remove what was not read for longest until `size` bytes more fit."""
        if size > self.max_bytes:
            raise ShardError(f"{size} bytes do not fit into a cache of {self.max_bytes}: give it more (data.cache_gb)", shard=url)
        files = sorted((s.st_mtime_ns, s.st_size, path) for path in self.folder.iterdir() if (s := _stat(path)) is not None)
        total = sum(num_bytes for _, num_bytes, _ in files) + size
        for _, num_bytes, path in files:
            if total > self.max_bytes and path.suffix == ".tar":
                path.unlink(missing_ok=True)
                total -= num_bytes

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.folder / name).open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _one(system: Any, name: str) -> dict[str, Any]:
    try:
        return {name: system.cat_file(name)}
    except Exception as error:  # as `cat` does for several
        return {name: error}


def _parsed(answer: Any, url: str) -> Manifest | ShardError | None:
    if isinstance(answer, FileNotFoundError):  # Meta's own tars have none
        return None
    if isinstance(answer, Exception):
        return ShardError(f"its manifest cannot be read: {type(answer).__name__}: {answer}", shard=url)
    try:
        return parse_manifest(answer, shard=url)
    except ShardError as error:
        return error


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process removed it
        return None
