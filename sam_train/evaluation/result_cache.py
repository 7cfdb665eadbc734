"""Measurements on disk, one file per image, so that an evaluation can be interrupted, resumed and shared by several processes.

folder/run.json             settings of the evaluation: checkpoint, protocol, images
folder/000001_KEY.json      one measurement, written atomically
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import EvaluationImage, Measurement
from sam_train.files import atomic_write_bytes
from sam_train.renames import upgrade_config

DESCRIPTIVE_KEYS = ("title", "download", "import")
"""Keys of an entry of `protocol.datasets` that are only shown to the reader; measurements do not depend on them."""


class ResultCache:
    """The measurements of one evaluation in `folder`.

    settings: everything that a measurement depends on, as plain JSON values.
    Raises ConfigError if the folder holds measurements with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        header = folder / "run.json"
        if header.is_file():
            stored, current = _comparable(upgrade_config(_read(header))), _comparable(settings)
            if stored != current:
                differing = sorted(key for key in {*stored, *current} if stored.get(key) != current.get(key))
                raise ConfigError(
                    f"{folder} holds measurements with another {' and '.join(differing)}: name another result_cache=FOLDER"
                )
        else:
            atomic_write_bytes(header, (json.dumps(settings, indent=1) + "\n").encode())

    def load(self, image_entry: EvaluationImage) -> Measurement | None:
        """Return the measurement of an image, or None if it does not exist yet. Raises ConfigError for a corrupt file."""
        path = self._path(image_entry)
        return _read(path) if path.is_file() else None

    def save(self, image_entry: EvaluationImage, measurement: Measurement) -> None:
        """Write a measurement atomically. Raises ValueError for values that JSON cannot hold, such as NaN."""
        atomic_write_bytes(self._path(image_entry), json.dumps(measurement, separators=(",", ":"), allow_nan=False).encode())

    def _path(self, image_entry: EvaluationImage) -> Path:
        return self.folder / f"{image_entry.number:06d}_{image_entry.name}.json"


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON reads them, without the descriptive keys of data sets."""
    comparable: dict[str, Any] = json.loads(json.dumps(settings))
    protocol = comparable.get("protocol")
    datasets = protocol.get("datasets") if isinstance(protocol, dict) else None
    for entry in (datasets or {}).values():
        for key in DESCRIPTIVE_KEYS:
            entry.pop(key, None)
    return comparable


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): delete it and run the evaluation again") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} does not hold a JSON object: delete it and run the evaluation again")
    return document
