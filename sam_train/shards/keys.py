"""Keys and image ids of samples, derived from the relative paths of image files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from sam_train.errors import ConfigError

_MAX_KEY_LENGTH = 200
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]")


def keys_from_paths(paths: Sequence[str]) -> list[str]:
    """Return one key per relative path (POSIX slashes), in order.

    The extension is removed, and every character but ASCII letters, digits, '_' and '-' becomes '_'. A key that this has
    changed, that is truncated to 200 characters, or that another path would share (ignoring case, for case-insensitive file
    systems) ends in '_' and 8 hex digits of the SHA-256 of its path.

    Raises ConfigError for a duplicate path or, with a probability of one in billions, for two paths with the same key.
    """
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    candidates = [_NOT_IN_A_KEY.sub("_", stem) for stem in stems]
    num_paths_by_key = Counter(key.lower() for key in candidates)
    keys = []
    for path, stem, key in zip(paths, stems, candidates, strict=True):
        is_unchanged = key == stem and len(key) <= _MAX_KEY_LENGTH and num_paths_by_key[key.lower()] == 1
        keys.append(key if is_unchanged else f"{key[: _MAX_KEY_LENGTH - 9]}_{_digest(path).hex()[:8]}")
    check_unique(list(zip(keys, paths, strict=True)), "key")
    return keys


def image_id_from_path(path: str) -> int:
    """Return a 48-bit integer that depends on the relative path only."""
    return int.from_bytes(_digest(path)[:6], "big")


def check_unique(values_and_origins: Sequence[tuple[object, str]], what: str) -> None:
    """Raise ConfigError if two of the (value, origin) pairs have the same value. `what` names the value in the message."""
    first: dict[object, str] = {}
    for value, origin in values_and_origins:
        if value in first:
            raise ConfigError(f"{first[value]!r} and {origin!r} have the same {what}, {value!r}: remove or rename one")
        first[value] = origin


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()
