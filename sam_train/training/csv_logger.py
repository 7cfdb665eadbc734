"""metrics.csv: one row per logged step, continued when a killed run resumes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, except that it keeps the rows before the step at which a run resumes.

    Lightning's own logger deletes the file of an earlier process. Here rows at and after the resumed step are dropped, because
    those steps are repeated. Each row is written to disk at the end of its step. A kill between a checkpoint and the end of its
    step loses the row of that step.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder.parent, name="", version=folder.name, flush_logs_every_n_steps=1)
        self._has_row = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file, created on first access."""
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Write a row. Before the first one, drop the rows of an existing file that this run will repeat."""
        if not self._has_row and step is not None:
            self._has_row = True
            path = Path(self.log_dir) / "metrics.csv"
            earlier = rows_before(path, step)
            path.unlink(missing_ok=True)
            self.experiment.metrics = earlier
            self.experiment.save()
        super().log_metrics(dict(metrics), step)


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keep an existing file: Lightning's own method deletes it here."""


def rows_before(path: Path, step: int) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv whose `step` is below `step`, without a last row that a kill has truncated."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if None not in row.values() and (row.get("step") or "").isdigit()]
    return [row for row in rows if int(row["step"]) < step]
