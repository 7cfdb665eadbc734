"""Take-down lists: text files of the image ids and keys that removal requests name.

A person shown in an image, or the owner of an image, can request its removal. The image engine leaves such images out of new
shards (`privacy.take_down`), `sam-data repair --drop-ids` removes them from existing shards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sam_train.errors import ConfigError
from sam_train.files import file_sha256
from sam_train.records import KEY_PATTERN

TAKEN_DOWN = "taken_down"
"""Reason under which removed images are counted, as stored in manifests."""


@dataclass(frozen=True, slots=True)
class TakeDownList:
    """Image ids and keys to remove; an entry that is a number is both an id and a key."""

    image_ids: frozenset[int] = frozenset()
    keys: frozenset[str] = frozenset()
    sha256: str = ""
    """SHA-256 of the list's file, hex."""

    def contains(self, *, key: str, image_id: int | None) -> bool:
        """Return whether an image must be removed. `image_id` is None if it is unknown."""
        return image_id in self.image_ids or key in self.keys


def read_take_down_list(path: Path) -> TakeDownList:
    """Read one image id or key per line; empty lines and text after a # are ignored.

    Raises ConfigError if the file is missing or is not text, or if a line is neither an image id nor a key.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        expected = "Expected a text file with one image id or key per line"
        raise ConfigError(f"the take-down list {path} cannot be read: {error}. {expected}") from error
    numbered_entries = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1)]
    for number, entry in numbered_entries:
        if entry and not KEY_PATTERN.fullmatch(entry):
            expected = "expected a number, or letters, digits, _ and -"
            raise ConfigError(f"{path}, line {number}: {entry[:80]!r} is neither an image id nor a key: {expected}")
    entries = {entry for _, entry in numbered_entries if entry}
    image_ids = frozenset(int(entry) for entry in entries if re.fullmatch(r"-?\d{1,19}", entry))
    return TakeDownList(image_ids=image_ids, keys=frozenset(entries), sha256=file_sha256(path))
