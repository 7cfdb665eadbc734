"""The trainer's CSV log: which value at which step."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam_train.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One logged quantity: float64 arrays of equal length."""

    steps: np.ndarray
    values: np.ndarray


def read_log(path: Path) -> dict[str, Series]:
    """Every column of a Lightning `metrics.csv` without its empty cells; nothing when there is no file yet.

    Raises ConfigError when the file has rows but no column `step`, or a cell that is no number.
    """
    if not path.is_file():
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            step = _number(row.get("step"), path, "step")
            if step is None:
                raise ConfigError(f"{path} has a row without `step`: expected the metrics.csv of Lightning's CSVLogger")
            for name, cell in row.items():
                if name not in ("step", "epoch") and (value := _number(cell, path, name)) is not None:
                    found.setdefault(name, []).append((step, value))
    return {name: Series(*np.array(pairs).T) for name, pairs in found.items()}


def concatenate(logs: list[dict[str, Series]], name: str) -> tuple[list[Series], list[float]]:
    """Column `name` of each log, steps counted on from log to log, and the step at which each log begins."""
    series, starts, start = [], [], 0.0
    for log in logs:
        starts.append(start)
        if name in log:
            series.append(Series(log[name].steps + start, log[name].values))
        if log:
            start += max(column.steps.max() for column in log.values()) + 1
    return series, starts


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` neighbours, fewer at the ends, so that the line is as long as the data."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _number(cell: object, path: Path, name: object) -> float | None:
    if cell is None or cell == "":
        return None
    try:
        return float(str(cell))
    except ValueError as error:
        raise ConfigError(f"{path}: column {name} holds {cell!r:.40}, expected a number or nothing") from error
