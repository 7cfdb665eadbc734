"""Cache of remote shards (`s3://`, `gs://`, `https://` and every other protocol of fsspec) in a local folder of bounded size.

A shard is downloaded completely when its first sample is read. The download is atomic and is checked against the size and the
SHA-256 of the shard's manifest, if there is one. The least recently used shards are deleted when space is needed. Any number of
processes may share the folder: one of them downloads a shard while the others wait; a shard that is deleted while a process has
it open can still be read to its end by that process.
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

_MAX_ATTEMPTS = 10


class ShardCache:
    """Local copies of remote shards, of at most `max_bytes` in total.

    Raises ConfigError if `max_bytes` is below 1.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ConfigError(f"the cache of shards may hold {max_bytes} bytes: allow enough bytes for a few shards")
        self.folder, self.max_bytes = folder, max_bytes
        self._sources: dict[Path, tuple[str, Manifest | None]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def index(self, urls: Sequence[str]) -> list[ShardIndex | ShardError]:
        """Return the index of each shard, or the error that prevents it.

        All manifests are read in one request; a shard without `places` in its manifest is downloaded.
        """
        manifests = self._manifests(urls)
        indexes: list[ShardIndex | ShardError] = []
        for url, manifest in zip(urls, manifests, strict=True):
            try:
                if isinstance(manifest, ShardError):
                    raise manifest
                indexes.append(self._index(url, manifest))
            except ShardError as error:
                indexes.append(error)
        return indexes

    def open(self, local: Path) -> BinaryIO:
        """Open a shard by the path in its index; download it if necessary. Raises ShardError if the download fails."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                stream = local.open("rb")
            except FileNotFoundError:
                self._fetch(local)
                continue
            os.utime(stream.fileno())  # shards are deleted in the order of these times
            return stream
        message = f"deleted by other processes as soon as it is downloaded: the cache of {self.max_bytes} bytes is too small"
        raise ShardError(message, shard=self._sources[local][0])

    def open_cached_or_local(self, shard: Path) -> BinaryIO:
        """Open a shard that this cache has indexed, or a local shard."""
        return self.open(shard) if shard in self._sources else open_local_shard(shard)

    def _index(self, url: str, manifest: Manifest | None) -> ShardIndex:
        local = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}_{url.rpartition('/')[2]}"
        self._sources[local] = url, manifest
        if manifest is not None and manifest.places is not None:
            return index_from_manifest(local, manifest, num_bytes=manifest.bytes)
        with self.open(local):
            return index_shard(local)

    def _manifests(self, urls: Sequence[str]) -> list[Manifest | ShardError | None]:
        if not urls:
            return []
        manifest_urls = [url[: -len(Path(url).name)] + manifest_path(Path(Path(url).name)).name for url in urls]
        system = filesystem_for_url(urls[0])
        names = [system._strip_protocol(url) for url in manifest_urls]
        responses = _read_files(system, names)
        return [
            _manifest_from_response(responses.get(name, FileNotFoundError(name)), url)
            for name, url in zip(names, urls, strict=True)
        ]

    def _fetch(self, local: Path) -> None:
        url, manifest = self._sources[local]
        with self._locked(f".{local.name}.lock"):
            if local.is_file():  # another process has downloaded it in the meantime
                return
            try:
                system = filesystem_for_url(url)
                size = int(system.info(url)["size"] or 0)
                if manifest is not None and size and size != manifest.bytes:
                    message = f"the remote file has {size} bytes, its manifest lists {manifest.bytes}: upload the shard again"
                    raise ShardError(message, shard=url)
                self._download(system, url, local, size or (manifest.bytes if manifest else 0), manifest)
            except SamTrainError:
                raise
            except Exception as error:  # each client library raises errors of its own, few of them OSErrors
                raise ShardError(f"cannot be fetched: {type(error).__name__}: {error}", shard=url) from error

    def _download(self, system: Any, url: str, local: Path, size: int, manifest: Manifest | None) -> None:
        digest, num_bytes = hashlib.sha256(), 0
        with self._locked(".room.lock"):
            self._make_room(size, url)
            writing = atomic_write(local)
            stream = writing.__enter__()
            stream.truncate(size)  # reserves the space, so that other processes count it
        try:
            with system.open(url, "rb", block_size=1 << 22, cache_type="readahead") as remote:
                while block := remote.read(1 << 22):
                    stream.write(block)
                    digest.update(block)
                    num_bytes += len(block)
            if (size and num_bytes != size) or (manifest is not None and digest.hexdigest() != manifest.sha256):
                message = "the downloaded bytes do not have the size or SHA-256 of the manifest or the server: upload it again"
                raise ShardError(message, shard=url)
        except BaseException as error:
            writing.__exit__(type(error), error, error.__traceback__)
            raise
        writing.__exit__(None, None, None)

    def _make_room(self, size: int, url: str) -> None:
        """Delete the least recently used shards until `size` more bytes fit."""
        if size > self.max_bytes:
            message = f"{size} bytes do not fit into a cache of {self.max_bytes}: raise data.cache_gb"
            raise ShardError(message, shard=url)
        statuses = ((_stat_if_exists(path), path) for path in self.folder.iterdir())
        files = sorted((status.st_mtime_ns, status.st_size, path) for status, path in statuses if status is not None)
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


def _read_files(system: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the bytes of each file, or the exception that reading it raised."""
    if len(names) > 1:
        return system.cat(names, on_error="return")
    try:
        return {names[0]: system.cat_file(names[0])}
    except Exception as error:  # `cat` does the same for several files
        return {names[0]: error}


def _manifest_from_response(response: Any, url: str) -> Manifest | ShardError | None:
    if isinstance(response, FileNotFoundError):  # Meta's own tars have no manifest
        return None
    if isinstance(response, Exception):
        return ShardError(f"its manifest cannot be read: {type(response).__name__}: {response}", shard=url)
    try:
        return parse_manifest(response, shard=url)
    except ShardError as error:
        return error


def _stat_if_exists(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process has deleted it
        return None
