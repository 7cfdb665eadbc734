"""The folder of an export: images and their label files, written atomically and never overwritten."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sam_train.errors import ConfigError, ShardError
from sam_train.files import atomic_write_bytes
from sam_train.records import ImageRecord

REPORT_NAME = "export.json"
"""Name of the file that marks an export as complete."""


class ExportFolder:
    """Writer of the images and files of an export.

    Writes out/images/KEY.jpg, the files of the exporter and finally out/export.json. An interrupted export can be started again:
    existing files with the same content are kept. Raises ConfigError if the folder holds a complete export.
    """

    def __init__(self, out: Path, counts: Counter[str]) -> None:
        if (out / REPORT_NAME).exists():
            raise ConfigError(f"{out / REPORT_NAME} exists: a complete export is not overwritten, give an empty --out")
        self.out, self._counts = out, counts
        self._names: set[str] = set()
        self._written: set[Path] = set()

    def add_image(self, record: ImageRecord, jpeg: bytes, *, folder: str = "images") -> str:
        """Write {folder}/NAME.jpg and return NAME: the record's key, or KEY_2, KEY_3, ... if another image has this name.

        Names are compared ignoring case, for case-insensitive file systems. Changed names are counted as "renamed".
        """
        name, number = record.key, 1
        while name.lower() in self._names:
            number += 1
            name = f"{record.key}_{number}"
        self._counts.update(["renamed"] if number > 1 else [])
        self._names.add(name.lower())
        self.write(f"{folder}/{name}.jpg", jpeg)
        return name

    def write(self, name: str, data: bytes) -> None:
        """Write out/name atomically. Raises ShardError if the file exists with other content."""
        path = self.out / name
        if not path.exists():
            atomic_write_bytes(path, data)
        elif path.read_bytes() != data:
            raise ShardError(f"{path} exists with other content: give an empty --out")
        self._written.add(path)

    def finish(self, report: dict[str, Any]) -> None:
        """Write export.json. Raises ShardError if a folder holds files that this export did not write."""
        for folder in sorted({path.parent for path in self._written} - {self.out}):
            if more := sorted(path for path in folder.iterdir() if path not in self._written and not path.name.startswith(".")):
                raise ShardError(f"{more[0]} and {len(more) - 1} more were not written by this export: give an empty --out")
        atomic_write_bytes(self.out / REPORT_NAME, (json.dumps(report, indent=1) + "\n").encode())
