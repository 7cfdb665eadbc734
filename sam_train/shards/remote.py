"""Names of shards that lie elsewhere."""

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
    """Whether a name is a URL."""
    return _URL.match(name) is not None


def filesystem_for_url(url: str) -> Any:
    """fsspec's for the URL, with what its own configuration says (environment, ~/.config/fsspec, ~/.aws).

    Raises ConfigError for a protocol that fsspec does not know or whose package is absent.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        what_to_do = f"pip install {_INSTALL[protocol]}" if protocol in _INSTALL else "name another place"
        raise ConfigError(f"{url!r} cannot be read: {error}; {what_to_do}") from error


def expand_local_and_remote(patterns: str | Sequence[str]) -> list[Path | str]:
    """As `expand_shards` for what is local; brace ranges, globs and folders (a name without `.tar`) of URLs to URLs.

    Raises ConfigError when a pattern names nothing. A URL that is no pattern is taken as it is: what is not there is
    noticed when it is read.
    """
    named = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    urls: set[str] = set()
    for pattern in filter(is_remote, named):
        for name in braceexpand.braceexpand(pattern):
            urls.update(_named_by(name))
    local = [pattern for pattern in named if not is_remote(pattern)]
    return [*(expand_shards(local) if local or not urls else []), *sorted(urls)]


def _named_by(url: str) -> list[str]:
    if url.endswith(".tar") and not re.search(r"[*?\[]", url):
        return [url]
    pattern = url if url.endswith(".tar") else f"{url.rstrip('/')}/*.tar"
    system = filesystem_for_url(url)
    try:
        found = [str(system.unstrip_protocol(name)) for name in system.glob(pattern)]
    except Exception as error:  # each server's client has errors of its own
        raise ConfigError(f"no shard matches {url!r}: {type(error).__name__}: {error}") from error
    if not found:
        raise ConfigError(f"no shard matches {url!r}: expected a .tar, a glob, a brace range or a folder of .tar files")
    return found
