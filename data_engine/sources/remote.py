"""Pictures and shards that lie elsewhere: `http(s)://` by itself, `s3://`, `gs://` and the like through fsspec."""

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
"""Every `reason` of a SkipSampleError raised here besides "too_large". A file on this machine can be "missing" too."""

_PAUSES_S = (0.5, 2.0)
"""Between tries; so there are three."""
_TIMEOUT_S = 30.0
_MAX_LIST_BYTES = 1 << 30
_GONE, _FORBIDDEN = (404, 410), (401, 402, 403, 451)
_WEB = ("http://", "https://")


class _TooLargeError(Exception):
    """More bytes than asked for."""


def fetch(url: str, *, max_bytes: int, key: str = "") -> bytes:
    """The bytes of a URL, tried three times where a later try may help.

    Raises SkipSampleError: "missing" and "forbidden" as the server says, "too_large" above `max_bytes`, "unreachable" for every
    other failure; ConfigError for a protocol that nobody here speaks.
    """
    read = _from_web if url.startswith(_WEB) else _from_store
    for pause in (*_PAUSES_S, None):
        try:
            return read(url, max_bytes)
        except _TooLargeError as error:
            raise SkipSampleError("too_large", f"{url}: {error}", key=key) from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a URL that is none
            reason = _reason(error)
            if pause is None or reason != "unreachable" or isinstance(error, ValueError):
                raise SkipSampleError(reason, f"{url}: {type(error).__name__}: {error}", key=key) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def read_remote_text(url: str) -> str:
    """A list at a URL. Raises ConfigError when it cannot be read."""
    try:
        return fetch(url, max_bytes=_MAX_LIST_BYTES).decode("utf-8-sig", errors="surrogateescape")
    except SkipSampleError as error:
        raise ConfigError(f"the list {url} cannot be read: {error}") from error


def list_remote_names(url: str) -> tuple[str, list[str]]:
    """Root and sorted names relative to it of what lies in a folder, matches a glob, or is one picture.

    Raises ConfigError when the store cannot be asked.
    """
    if url.lower().endswith(IMAGE_EXTENSIONS) and not re.search(r"[*?\[]", url):
        root, _, name = url.rpartition("/")
        return root, [name]
    root = re.sub(r"/[^/]*[*?\[].*", "", url).rstrip("/")
    system = filesystem_for_url(url)
    try:
        found = system.glob(url) if root != url.rstrip("/") else system.find(url)
        names = [str(system.unstrip_protocol(name)) for name in found]
    except OSError as error:
        raise ConfigError(f"{url!r} cannot be listed: {type(error).__name__}: {error}") from error
    if not names:
        raise ConfigError(f"nothing lies at {url!r}: expected a folder of pictures, a glob, a .txt list or SA-1B tars")
    canonical = str(system.unstrip_protocol(root))
    inside = [name[len(canonical) + 1 :] for name in names if name.startswith(f"{canonical}/")]
    return root, sorted(name for name in inside if not any(part.startswith(".") for part in name.split("/")))


def list_remote_shards(pattern: str) -> list[tuple[str, list[str], np.ndarray]]:
    """URL, keys and places (n x 5 int64) of each shard that a URL, glob, brace range or folder of URLs names.

    Read from the manifests alone. Raises ConfigError when there are none, ShardError for a manifest that does not read.
    """
    found = []
    for url in map(str, expand_local_and_remote(pattern)):
        beside = url[: -len(Path(url).name)] + manifest_path(Path(Path(url).name)).name
        try:
            manifest = parse_manifest(fetch(beside, max_bytes=_MAX_LIST_BYTES), shard=url)
        except SkipSampleError as error:
            raise ConfigError(f"{url} has no manifest that can be read ({error}): bring the tar here to annotate it") from error
        if manifest.places is None:
            raise ShardError("its manifest does not say where samples lie: bring the tar here to annotate it", shard=url)
        index = index_from_manifest(Path(url), manifest, num_bytes=manifest.bytes)
        found.append((url, np.char.decode(index.keys, "ascii").tolist(), index.columns))
    return found


def remote_shard_opener(url: str) -> Callable[[Path], BinaryIO]:
    """What `read_sample` opens a shard at a URL with: only the parts that are read are fetched."""

    def opened(_: Path) -> BinaryIO:
        try:
            return io.BufferedReader(filesystem_for_url(url).open(url, "rb", block_size=1 << 20, cache_type="readahead"))
        except FileNotFoundError as error:
            raise ShardError("no such shard any more: start with another out=", shard=url) from error

    return opened


def _from_web(url: str, max_bytes: int) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "sam-train", "Accept": "*/*"})  # noqa: S310  http(s) alone
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            data: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer too, and holds the connection
        raise
    if len(data) > max_bytes:
        raise _TooLargeError(f"more than {max_bytes} bytes")
    return data


def _from_store(url: str, max_bytes: int) -> bytes:
    system = filesystem_for_url(url)
    info: dict[str, Any] = system.info(url)
    if (info.get("size") or 0) > max_bytes:
        raise _TooLargeError(f"{info['size']} bytes are more than {max_bytes}")
    data: bytes = system.cat_file(url)
    return data


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return "missing" if error.code in _GONE else "forbidden" if error.code in _FORBIDDEN else "unreachable"
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "forbidden" if isinstance(error, PermissionError) else "unreachable"
