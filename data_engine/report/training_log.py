"""The CSV log of a training as series of values over training steps."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam_train.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One logged quantity: training steps and values, float64 arrays of equal length."""

    steps: np.ndarray
    values: np.ndarray


def read_log(path: Path) -> dict[str, Series]:
    """Return every column of a Lightning `metrics.csv` without its empty cells, by name; empty if the file does not exist.

    Raises ConfigError if a row has no `step`, or if a cell is not a number.
    """
    if not path.is_file():
        return {}
    columns: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            step = _parse_number(row.get("step"), path, "step")
            if step is None:
                raise ConfigError(f"{path} has a row without `step`: expected the metrics.csv of Lightning's CSVLogger")
            for name, cell in row.items():
                if name not in ("step", "epoch") and (value := _parse_number(cell, path, name)) is not None:
                    columns.setdefault(name, []).append((step, value))
    return {name: Series(*np.array(pairs).T) for name, pairs in columns.items()}


def concatenate(logs: list[dict[str, Series]], name: str) -> tuple[list[Series], list[float]]:
    """Return the column `name` of each log, with steps counted on from log to log, and the step at which each log begins."""
    series, starts, start = [], [], 0.0
    for log in logs:
        starts.append(start)
        if name in log:
            series.append(Series(log[name].steps + start, log[name].values))
        if log:
            start += max(column.steps.max() for column in log.values()) + 1
    return series, starts


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the moving average over `window` values, over fewer at the ends, in the length of `values`."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _parse_number(cell: object, path: Path, name: object) -> float | None:
    if cell is None or cell == "":
        return None
    try:
        return float(str(cell))
    except ValueError as error:
        raise ConfigError(f"{path}: column {name} holds {cell!r:.40}, expected a number or an empty cell") from error
