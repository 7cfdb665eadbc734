"""From a file's relative path to the key and the number under which a shard holds it."""

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
    """One key for each relative path (POSIX slashes), in their order.

    The extension goes; whatever is no ASCII letter, digit, '_' or '-' becomes '_'. A key that was changed by this, cut
    to its 200 characters, or that another path would get too (upper and lower case are one here, for file systems where
    they are) ends in '_' and 8 hex digits of the SHA-256 of its path.

    Raises ConfigError for a path given twice or, by a chance of one in billions, two paths with one key.
    """
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    plain = [_NOT_IN_A_KEY.sub("_", stem) for stem in stems]
    wanted_by = Counter(key.lower() for key in plain)
    keys = []
    for path, stem, key in zip(paths, stems, plain, strict=True):
        as_it_is = key == stem and len(key) <= _MAX_KEY_LENGTH and wanted_by[key.lower()] == 1
        keys.append(key if as_it_is else f"{key[: _MAX_KEY_LENGTH - 9]}_{_digest(path).hex()[:8]}")
    check_unique(list(zip(keys, paths, strict=True)), "key")
    return keys


def image_id_from_path(path: str) -> int:
    """A number of 48 bits that depends on the relative path alone."""
    return int.from_bytes(_digest(path)[:6], "big")


def check_unique(named: Sequence[tuple[object, str]], what: str) -> None:
    """Raise ConfigError when two of the (value, where it comes from) pairs have one value. `what` names the value."""
    first: dict[object, str] = {}
    for value, place in named:
        if value in first:
            raise ConfigError(f"{first[value]!r} and {place!r} have one {what}, {value!r}: leave one out or rename it")
        first[value] = place


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()
