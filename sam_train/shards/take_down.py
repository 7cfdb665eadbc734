"""Pictures that somebody wants out: a list of image ids and keys, in a text file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sam_train.errors import ConfigError
from sam_train.files import file_sha256
from sam_train.records import KEY_PATTERN

TAKEN_DOWN = "taken_down"
"""The reason under which such pictures are counted."""


@dataclass(frozen=True, slots=True)
class TakeDownList:
    """What the list names; a number is looked for among both."""

    image_ids: frozenset[int] = frozenset()
    keys: frozenset[str] = frozenset()
    sha256: str = ""
    """Of the file, hex."""

    def contains(self, *, key: str, image_id: int | None) -> bool:
        """Whether this picture must go. image_id: None where it is not known."""
        return image_id in self.image_ids or key in self.keys


def read_take_down_list(path: Path) -> TakeDownList:
    """One image id or key a line; empty lines and what follows a # do not count.

    Raises ConfigError when the file is missing, no text, or a line can be neither.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        expected = "Expected a text file with one image id or key a line"
        raise ConfigError(f"the take-down list {path} cannot be read: {error}. {expected}") from error
    named = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    for number, name in named:
        if name and not KEY_PATTERN.fullmatch(name):
            raise ConfigError(
                f"{path}, line {number}: {name[:80]!r} is no image id and no key: expected a number, or letters, digits, _ and -"
            )
    names = {name for _, name in named if name}
    numbers = frozenset(int(name) for name in names if re.fullmatch(r"-?\d{1,19}", name))
    return TakeDownList(image_ids=numbers, keys=frozenset(names), sha256=file_sha256(path))
