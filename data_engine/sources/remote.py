"""Images and shards at URLs: `http(s)://` directly; `s3://`, `gs://` and other protocols through fsspec."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sam_train.errors import ConfigError, ShardError, SkipSampleError
from sam_train.shards.image_io import IMAGE_EXTENSIONS
from sam_train.shards.index import index_from_manifest
from sam_train.shards.manifest import manifest_path, parse_manifest
from sam_train.shards.remote import expand_local_and_remote, filesystem_for_url

REMOTE_REASONS = ("missing", "forbidden", "unreachable")
"""All reasons of a SkipSampleError raised here except "too_large". A local file can be "missing" too."""

_RETRY_PAUSES_S = (0.5, 2.0)
"""Pauses between the three tries."""
_TIMEOUT_S = 30.0
_MAX_LIST_BYTES = 1 << 30
_MISSING_CODES, _FORBIDDEN_CODES = (404, 410), (401, 402, 403, 451)
_HTTP = ("http://", "https://")


class _TooLargeError(Exception):
    """The file is larger than the limit."""


def fetch_url(url: str, *, max_bytes: int, key: str = "") -> bytes:
    """Return the bytes of a URL. Failures that may be temporary are retried twice.

    Raises SkipSampleError with the reason "missing" or "forbidden" as the server responds, "too_large" above `max_bytes`, and
    "unreachable" for every other failure; ConfigError for an unsupported protocol.
    """
    read = _read_http if url.startswith(_HTTP) else _read_fsspec
    for pause in (*_RETRY_PAUSES_S, None):
        try:
            return read(url, max_bytes)
        except _TooLargeError as error:
            raise SkipSampleError("too_large", f"{url}: {error}", key=key) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a valid URL
            reason = _skip_reason(error)
            if pause is None or reason != "unreachable" or isinstance(error, ValueError):
                raise SkipSampleError(reason, f"{url}: {type(error).__name__}: {error}", key=key) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def read_remote_text(url: str) -> str:
    """Return the text of a list at a URL. Raises ConfigError if it cannot be read."""
    try:
        return fetch_url(url, max_bytes=_MAX_LIST_BYTES).decode("utf-8-sig", errors="surrogateescape")
    except SkipSampleError as error:
        raise ConfigError(f"the list {url} cannot be read: {error}") from error


def list_remote_names(url: str) -> tuple[str, list[str]]:
    """List the files in a folder, those that match a glob, or one image. Return the root and the sorted names relative to it.

    Raises ConfigError if the listing fails or is empty.
    """
    if url.lower().endswith(IMAGE_EXTENSIONS) and not re.search(r"[*?\[]", url):
        root, _, name = url.rpartition("/")
        return root, [name]
    root = re.sub(r"/[^/]*[*?\[].*", "", url).rstrip("/")
    system = filesystem_for_url(url)
    try:
        paths = system.glob(url) if root != url.rstrip("/") else system.find(url)
        names = [str(system.unstrip_protocol(path)) for path in paths]
    except OSError as error:
        raise ConfigError(f"{url!r} cannot be listed: {type(error).__name__}: {error}") from error
    if not names:
        raise ConfigError(f"no files at {url!r}: expected a folder of images, a glob, a .txt list or SA-1B tars")
    canonical = str(system.unstrip_protocol(root))
    inside = [name[len(canonical) + 1 :] for name in names if name.startswith(f"{canonical}/")]
    return root, sorted(name for name in inside if not any(part.startswith(".") for part in name.split("/")))


def list_remote_shards(pattern: str) -> list[tuple[str, list[str], np.ndarray]]:
    """Return URL, keys and locations of each shard that a URL, a glob, a brace range or a folder names.

    The locations are n x 5 int64: image id, offset and length of the JPEG and of the JSON. They are read from the manifests
    alone. Raises ConfigError if there are no shards or a manifest is unavailable, ShardError for a corrupt manifest.
    """
    shards = []
    for url in map(str, expand_local_and_remote(pattern)):
        manifest_url = url[: -len(Path(url).name)] + manifest_path(Path(Path(url).name)).name
        try:
            manifest = parse_manifest(fetch_url(manifest_url, max_bytes=_MAX_LIST_BYTES), shard=url)
        except SkipSampleError as error:
            raise ConfigError(f"{url} has no readable manifest ({error}): copy the tar to this machine to annotate it") from error
        if manifest.places is None:
            raise ShardError("its manifest has no sample locations: copy the tar to this machine to annotate it", shard=url)
        index = index_from_manifest(Path(url), manifest, num_bytes=manifest.bytes)
        shards.append((url, np.char.decode(index.keys, "ascii").tolist(), index.columns))
    return shards


def remote_shard_opener(url: str) -> Callable[[Path], BinaryIO]:
    """Return the function with which `read_sample` opens a shard at a URL. Only the parts that are read are fetched."""

    def open_shard(_: Path) -> BinaryIO:
        try:
            return io.BufferedReader(filesystem_for_url(url).open(url, "rb", block_size=1 << 20, cache_type="readahead"))
        except FileNotFoundError as error:
            raise ShardError("the shard no longer exists: start with another out=", shard=url) from error

    return open_shard


def _read_http(url: str, max_bytes: int) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "sam-train", "Accept": "*/*"})  # noqa: S310  http(s) only
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            data: bytes = response.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        error.close()  # the error is also the response and holds the connection
        raise
    if len(data) > max_bytes:
        raise _TooLargeError(f"more than {max_bytes} bytes")
    return data


def _read_fsspec(url: str, max_bytes: int) -> bytes:
    system = filesystem_for_url(url)
    info: dict[str, Any] = system.info(url)
    if (info.get("size") or 0) > max_bytes:
        raise _TooLargeError(f"{info['size']} bytes are more than {max_bytes}")
    data: bytes = system.cat_file(url)
    return data


def _skip_reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "missing" if error.code in _MISSING_CODES else "forbidden" if error.code in _FORBIDDEN_CODES else "unreachable"
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "forbidden" if isinstance(error, PermissionError) else "unreachable"
