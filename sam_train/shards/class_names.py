"""Class names of masks: COCO categories, YOLO class numbers, and their numbering on export.

A name is stored as the data set spells it ("alarm_clock" in LVIS, "traffic light" in COCO). Data sets without classes, and our
own exports of masks without names, call their only class "object": on import this becomes the empty name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sam_train.errors import ShardError

UNNAMED_CLASS = "object"
"""Name of the class of masks without a name in exported data sets."""
_MAX_BYTES = 16 << 20
_MAX_CHARACTERS = 10_000
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def parse_class_name(value: object, *, place: str) -> str:
    """Return a class name stripped of surrounding white space, "" for `UNNAMED_CLASS`.

    Raises ShardError, naming `place`, if the value is not one line of at most 10,000 printable characters.
    """
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS or not value.strip().isprintable():
        message = f"expected a name of at most {_MAX_CHARACTERS} printable characters, got {str(value)[:80]!r}"
        raise ShardError(f"{place}: {message}")
    name = value.strip()
    return "" if name == UNNAMED_CLASS else name


def parse_category_names(categories: object, *, place: str) -> dict[int, str]:
    """Return the names of COCO's `categories`, a list of {id, name}, by id; "" for a category without a name.

    Ids may be integral floats or texts, names may be numbers; null is an empty list.

    Raises ShardError, naming `place`, for any other form.
    """
    if categories is None:
        return {}
    if not isinstance(categories, list):
        raise ShardError(f"{place}: expected a list of {{id, name}} as 'categories', got {type(categories).__name__}")
    names: dict[int, str] = {}
    for index, category in enumerate(categories):
        category_place = f"{place}, categories[{index}]"
        number = _as_integer(category.get("id")) if isinstance(category, dict) else None
        if number is None or number in names:
            raise ShardError(f"{category_place}: expected an object with a unique integer as 'id', got {str(category)[:80]}")
        name = category.get("name", "")
        names[number] = parse_class_name(str(name) if type(name) in (int, float) else name, place=category_place)
    return names


def _as_integer(value: object) -> int | None:
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return int(text) if not isinstance(value, bool) and _NUMBER.fullmatch(text) else None


def read_class_names(path: Path) -> dict[int, str]:
    """Return names by class number, from YOLO's data.yaml (`names:`, a list or a map) or a text file with one name per line.

    Numbers of a list or a text file begin at 0. Raises ShardError, naming the file, if it is absent, too large or invalid.
    """
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        expected = "expected data.yaml or a text file with one name per line, of at most 16 MB"
        raise ShardError(f"{path} is not a file of class names: {expected}")
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        if path.suffix in (".yaml", ".yml"):
            # BaseLoader builds no objects and leaves every scalar as text, so that "no" and 0 stay names.
            document = yaml.load(data.decode("utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
            names = document.get("names") if isinstance(document, dict) else None
        else:
            names = data.decode("utf-8").splitlines()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} is not a valid file of class names: {error}") from error
    if not isinstance(names, (dict, list)):
        names = {"": ""}
    pairs: list[tuple[Any, Any]] = [*names.items()] if isinstance(names, dict) else [*enumerate(names)]
    numbers = [_as_integer(number) for number, _ in pairs]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise ShardError(f"{path} is not a valid file of class names: expected 'names', a list, or a map from numbers to names")
    return {
        number: parse_class_name(name, place=f"{path}, class {number}")
        for number, (_, name) in zip(numbers, pairs, strict=True)
        if number is not None
    }


class ClassNumbering:
    """Numbers of classes by name; masks without a name are the class `UNNAMED_CLASS`."""

    def __init__(self, names_by_number: Mapping[int, str]) -> None:
        self._numbers = {name or UNNAMED_CLASS: number for number, name in names_by_number.items()}

    def number_of(self, name: str, *, place: str) -> int:
        """Return the class number of a name. Raises ShardError, naming `place`, for a name that has none."""
        name = name or UNNAMED_CLASS
        if name not in self._numbers:
            raise ShardError(f"{place}: the file of class names has no class {name!r}: add it there")
        return self._numbers[name]

    @property
    def names(self) -> dict[int, str]:
        """Names by class number, in the order of numbers."""
        return {number: name for name, number in sorted(self._numbers.items(), key=lambda item: item[1])}
