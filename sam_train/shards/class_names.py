"""What masks show, in words, on the way in and out: categories of data sets, the numbers of YOLO's classes.

A name is kept as a data set has it ("alarm_clock" in LVIS, "traffic light" in COCO). Sets without classes call their one class
"object", as our own exports do: that says nothing, and is no name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sam_train.errors import ShardError

UNNAMED_CLASS = "object"
_MAX_BYTES = 16 << 20
_MAX_LETTERS = 10_000


def parse_class_name(value: object, *, place: str) -> str:
    """Return a class name stripped of surrounding white space, "" for `UNNAMED_CLASS`.

    Raises ShardError, naming `place`, if the value is not one line of at most 10,000 printable characters.
    """
    if not isinstance(value, str) or len(value) > _MAX_LETTERS or not all(letter.isprintable() for letter in value.strip()):
        message = f"expected a name of at most {_MAX_LETTERS} printable letters, got {str(value)[:80]!r}"
        raise ShardError(f"{place}: {message}")
    name = value.strip()
    return "" if name == UNNAMED_CLASS else name


def parse_category_names(categories: object, *, place: str) -> dict[int, str]:
    """COCO's `categories`, a list of {id, name}, to names by id, "" where one has none.

    Raises ShardError, naming `place`, for another form.
    """
    if not isinstance(categories, list):
        raise ShardError(f"{place}: expected a list of {{id, name}} as 'categories', got {type(categories).__name__}")
    names: dict[int, str] = {}
    for index, category in enumerate(categories):
        here = f"{place}, categories[{index}]"
        number = category.get("id") if isinstance(category, dict) else None
        if type(number) is not int or number in names:
            raise ShardError(f"{here}: expected an object with a whole number of its own as 'id', got {str(category)[:80]}")
        names[number] = parse_class_name(category.get("name", ""), place=here)
    return names


class _DataYaml(msgspec.Struct):
    """What matters of the file that describes a data set of YOLO's."""

    names: list[str] | dict[int, str]


def read_class_names(path: Path) -> dict[int, str]:
    """Names by class number, of YOLO's data.yaml (`names:`, a list or a map) or of a text file with a name a line, from 0.

    Raises ShardError, naming the file, when it is absent, too large, or has another form.
    """
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ShardError(f"{path} is no file of class names: expected data.yaml or a text with a name a line, at most 16 MB")
    data = path.read_bytes()
    try:
        if path.suffix in (".yaml", ".yml"):
            found = msgspec.yaml.decode(data, type=_DataYaml).names
        else:
            found = data.decode("utf-8").splitlines()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} does not read as class names: {error}") from error
    numbered: Mapping[int, Any] = found if isinstance(found, dict) else dict(enumerate(found))
    return {number: parse_class_name(name, place=f"{path}, class {number}") for number, name in numbered.items()}


class ClassNumbering:
    """Numbers of classes, each from its first mask on: the next from `first` up, or those that a file gives."""

    def __init__(self, *, first: int, given: Mapping[int, str] | None = None) -> None:
        self._numbers = {name or UNNAMED_CLASS: number for number, name in (given or {}).items()}
        self._is_given, self._next = given is not None, first

    def take(self, name: str, *, place: str) -> int:
        """The class of masks of that name, "" being a class of its own. Raises ShardError for one that the file lacks."""
        name = name or UNNAMED_CLASS
        if name not in self._numbers:
            if self._is_given:
                raise ShardError(f"{place}: no class is called {name!r} in the file of class names: add it there")
            self._numbers[name] = self._next
            self._next += 1
        return self._numbers[name]

    @property
    def names(self) -> dict[int, str]:
        """By number, in the order of numbers."""
        return {number: name for name, number in sorted(self._numbers.items(), key=lambda item: item[1])}
