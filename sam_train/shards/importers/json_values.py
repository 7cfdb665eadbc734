"""Values of JSON files as the tools of data sets write them: numbers as text or with a fraction of zero, flags as text."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.shards.keys import image_id_from_path

_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*")
_FALSE, _TRUE = ("", "0", "false", "no"), ("1", "true", "yes")


def read_json_object(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object in which the keys `lists` hold lists of objects. Raises ShardError, naming the file, if it is not."""
    document = read_json(path)
    for name in lists:
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ShardError(f"{path}: expected an object with {' and '.join(map(repr, lists))}, lists of objects")
    return document


def read_json(path: Path) -> Any:
    """Read a JSON file of any encoding. Raises ShardError, naming the file, if it is absent or not JSON."""
    if not path.is_file():
        raise ShardError(f"no such file: {path}")
    return parse_json(path.read_bytes(), place=str(path))


def parse_json(data: bytes, *, place: str) -> Any:
    """Parse JSON. Raises ShardError, naming `place`, if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{place} is not JSON: {error}") from error


def integer_field(entry: dict[str, Any], name: str, *, place: str, counts: Counter[str] | None = None) -> int:
    """Return the integer `entry[name]`.

    An integral float and the text of an integer are accepted, and counted in `counts` as "number_normalised". Raises ShardError,
    naming `place`, for anything else.
    """
    value = entry.get(name)
    number = as_integer(value)
    if number is None:
        raise ShardError(f"{place}: expected an integer as {name!r}, got {str(value)[:80]}")
    if type(value) is not int and counts is not None:
        counts["number_normalised"] += 1
    return number


def as_integer(value: object) -> int | None:
    """Return an integer, an integral float or the text of an integer as int, None for any other value."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return int(float(value)) if isinstance(value, str) and _INTEGER.fullmatch(value) else None


def id_field(entry: dict[str, Any], name: str, *, place: str, counts: Counter[str] | None = None) -> int:
    """Return the id `entry[name]` as `integer_field` does; any other text becomes a number that follows from it."""
    value = entry.get(name)
    if isinstance(value, str) and value and as_integer(value) is None:
        if counts is not None:
            counts["number_normalised"] += 1
        return image_id_from_path(value)
    return integer_field(entry, name, place=place, counts=counts)


def flag(value: object, *, place: str) -> bool:
    """Return a flag that is stored as boolean, number, text or null. Raises ShardError, naming `place`, for any other value."""
    if value is None or type(value) in (bool, int, float):
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else None
    if text not in (*_FALSE, *_TRUE):
        raise ShardError(f"{place}: expected 0 or 1, got {str(value)[:80]!r}")
    return text in _TRUE
