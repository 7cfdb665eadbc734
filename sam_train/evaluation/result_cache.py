"""Measurements on disk, a file a subject, so that a run can be stopped, gone on with, and shared by several processes.

folder/run.json             what is measured: checkpoint, protocol, data
folder/000001_KEY.json      one measurement, whole or not there
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import EvaluationImage, Measurement
from sam_train.files import atomic_write_bytes


class ResultCache:
    """The measurements of one run in `folder`.

    what: everything that a measurement depends on, as JSON holds it. Raises ConfigError when the folder holds another run's.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any]) -> None:
        self.folder = folder
        header = folder / "run.json"
        if header.is_file():
            kept = _read(header)
            if kept != what:
                other = sorted(key for key in {*kept, *what} if kept.get(key) != what.get(key))
                raise ConfigError(f"{folder} holds measurements with another {' and '.join(other)}: name another journal=FOLDER")
        else:
            atomic_write_bytes(header, (json.dumps(what, indent=1) + "\n").encode())

    def load(self, image_entry: EvaluationImage) -> Measurement | None:
        """The measurement of a subject, None when it was not made yet. Raises ConfigError for a file that is none."""
        path = self._path(image_entry)
        return _read(path) if path.is_file() else None

    def save(self, image_entry: EvaluationImage, measurement: Measurement) -> None:
        """Keep it, whole or not at all. Raises ValueError for what JSON cannot hold, NaN among it."""
        atomic_write_bytes(self._path(image_entry), json.dumps(measurement, separators=(",", ":"), allow_nan=False).encode())

    def _path(self, image_entry: EvaluationImage) -> Path:
        return self.folder / f"{image_entry.number:06d}_{image_entry.name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}): delete it and start again") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no object: delete it and start again")
    return document
