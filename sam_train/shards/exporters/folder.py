"""The folder that an export fills: pictures and what belongs to them, each file whole, none over another."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sam_train.errors import ConfigError, ShardError
from sam_train.files import atomic_write_bytes
from sam_train.records import ImageRecord

DONE = "export.json"


class ExportFolder:
    """Names pictures, writes files, and marks the folder as done.

    out/images/KEY.jpg, what the kind of export adds, and at last out/export.json. Started again after an interruption, an
    export keeps the files that are there with the same content. Raises ConfigError when the folder holds a finished export.
    """

    def __init__(self, out: Path, counts: Counter[str]) -> None:
        if (out / DONE).exists():
            raise ConfigError(f"{out / DONE} is there: a finished export is not written over, give an empty --out")
        self.out, self._counts = out, counts
        self._names: set[str] = set()
        self._written: set[Path] = set()

    def add_image(self, record: ImageRecord, jpeg: bytes) -> str:
        """Write images/NAME.jpg and return NAME, the record's key, or KEY_2, KEY_3, ... where another picture has it.

        Upper and lower case are one, for file systems where they are. Counts "renamed".
        """
        name, number = record.key, 1
        while name.lower() in self._names:
            number += 1
            name = f"{record.key}_{number}"
        self._counts.update(["renamed"] if number > 1 else [])
        self._names.add(name.lower())
        self.write(f"images/{name}.jpg", jpeg)
        return name

    def write(self, name: str, data: bytes) -> None:
        """Write out/name whole. Raises ShardError when a file of another content is there."""
        path = self.out / name
        if not path.exists():
            atomic_write_bytes(path, data)
        elif path.read_bytes() != data:
            raise ShardError(f"{path} is there with other content: give an empty --out")
        self._written.add(path)

    def finish(self, report: dict[str, Any]) -> None:
        """Write export.json. Raises ShardError when a folder holds files that are not of this export."""
        for folder in sorted({path.parent for path in self._written} - {self.out}):
            if more := sorted(path for path in folder.iterdir() if path not in self._written and not path.name.startswith(".")):
                raise ShardError(f"{more[0]} and {len(more) - 1} more are not of this export: give an empty --out")
        atomic_write_bytes(self.out / DONE, (json.dumps(report, indent=1) + "\n").encode())
