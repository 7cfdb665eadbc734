"""URLs of remote shards: recognition, file systems and expansion of patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import braceexpand

from sam_train.errors import ConfigError
from sam_train.shards.reader import expand_shards

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_INSTALL = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}


def is_remote(name: str) -> bool:
    """Return whether a name is a URL."""
    return _URL.match(name) is not None


def filesystem_for_url(url: str) -> Any:
    """Return the fsspec file system for a URL, configured as fsspec is (environment, ~/.config/fsspec, ~/.aws).

    Raises ConfigError for a protocol that fsspec does not support or whose package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        remedy = f"pip install {_INSTALL[protocol]}" if protocol in _INSTALL else "use another protocol"
        raise ConfigError(f"{url!r} cannot be read: {error}; {remedy}") from error


def expand_local_and_remote(patterns: str | Sequence[str]) -> list[Path | str]:
    """Expand local patterns as `expand_shards` does, and brace ranges, globs and folders of URLs to URLs of tars.

    A URL without `.tar` at its end is a folder. Raises ConfigError if a pattern matches nothing. A URL of a single tar is not
    checked: reading it fails if it does not exist.
    """
    names = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    urls: set[str] = set()
    for pattern in filter(is_remote, names):
        for name in braceexpand.braceexpand(pattern):
            urls.update(_match_urls(name))
    local = [pattern for pattern in names if not is_remote(pattern)]
    return [*(expand_shards(local) if local or not urls else []), *sorted(urls)]


def _match_urls(url: str) -> list[str]:
    if url.endswith(".tar") and not re.search(r"[*?\[]", url):
        return [url]
    pattern = url if url.endswith(".tar") else f"{url.rstrip('/')}/*.tar"
    system = filesystem_for_url(url)
    try:
        urls = [str(system.unstrip_protocol(name)) for name in system.glob(pattern)]
    except Exception as error:  # each client library raises errors of its own
        raise ConfigError(f"no shard matches {url!r}: {type(error).__name__}: {error}") from error
    if not urls:
        raise ConfigError(f"no shard matches {url!r}: expected a .tar, a glob, a brace range or a folder of .tar files")
    return urls
