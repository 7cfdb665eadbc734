"""Paths of all files in the run folder of a data-engine loop, and the reading and writing of its small JSON files.

    runs/<name>/
      config.yaml                   the resolved config
      corpus.json                   size of the corpus, and the proof that no held-out image is in it
      0_start/                      the initial model, if the config names one
      1_assisted_manual/            a step: shards/, train/, evaluation.json, or left_out.json when it was skipped
      final/                        measures of the first and the last model on the final shards, if the config names some
      promoted.json                 the promoted model and the history of all decisions (promotion.py)
      clock.json                    run time of each process
      jobs/, jobs.json              scripts, logs and numbers of SLURM jobs
      ablation/, ablation.json      trainings on the masks of some stages only, and their results
      masks.parquet                 provenance of each mask
      model.pt                      a copy of the promoted model
      report.json, report.html      the report, and overview.png

Every JSON file is written atomically.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_train.config import load_stored
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes


@dataclass(frozen=True, slots=True)
class StepFolder:
    """The folder of one step, such as `2_semi_automatic`, or of one training of the ablation. It need not exist yet."""

    path: Path

    @property
    def shards(self) -> Path:
        """Folder of the shards that the step annotates."""
        return self.path / "shards"

    @property
    def ledger(self) -> Path:
        """Totals over the shards; the engine writes it when all images are annotated."""
        return self.shards / "ledger.json"

    @property
    def train(self) -> Path:
        """Run folder of the training."""
        return self.path / "train"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.train / "model.pt"

    @property
    def train_metrics(self) -> Path:
        """Final metrics of the training; the trainer writes them when it is finished."""
        return self.train / "metrics.json"

    @property
    def training_log(self) -> Path:
        """CSV log of the training, one row per logged step."""
        return self.train / "csv" / "metrics.csv"

    @property
    def evaluation(self) -> Path:
        """Measures of the trained model on the held-out shards."""
        return self.path / "evaluation.json"

    def read_evaluation(self) -> dict[str, Any]:
        """Return the content of evaluation.json. Raises ConfigError if it is not a JSON object."""
        return read_json_object(self.evaluation)

    def annotator_seconds(self) -> float:
        """Return the time in seconds that annotators spent in this step, 0 before its annotation is finished.

        For a person it is measured; for the simulated annotator it is the sum of the costs in its config.
        """
        if not self.ledger.is_file():
            return 0.0
        return float(read_json_object(self.ledger)["counts"].get("seconds", 0.0))

    @property
    def _skipped(self) -> Path:
        return self.path / "left_out.json"

    def is_skipped(self) -> bool:
        """Return whether the step was skipped because the budget of its stage was spent."""
        return self._skipped.is_file()

    def skip_reason(self) -> str:
        """Return why the step was skipped, an empty string if it was not."""
        return str(read_json_object(self._skipped).get("why", "")) if self.is_skipped() else ""

    def write_skip_reason(self, reason: str) -> None:
        """Mark the step as skipped."""
        _write_json(self._skipped, {"why": reason})


@dataclass(frozen=True, slots=True)
class CycleFolder:
    """The run folder of a data-engine loop. It need not exist yet."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config of the loop."""
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        """The file that a running loop holds a lock on."""
        return self.path / ".lock"

    @property
    def promotions(self) -> Path:
        """The promoted model and the history of all decisions; promotion.py reads and writes it."""
        return self.path / "promoted.json"

    @property
    def model(self) -> Path:
        """A copy of the promoted model."""
        return self.path / "model.pt"

    @property
    def jobs(self) -> Path:
        """Folder of the scripts and logs of SLURM jobs."""
        return self.path / "jobs"

    @property
    def masks_table(self) -> Path:
        """Parquet table with the provenance of each mask."""
        return self.path / "masks.parquet"

    @property
    def report_json(self) -> Path:
        """The report for programs."""
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def overview(self) -> Path:
        """Overview of the loop as one PNG: an image of each stage, predictions before and after, seconds per mask."""
        return self.path / "overview.png"

    def step(self, name: str) -> StepFolder:
        """Return the folder of the step `name`."""
        return StepFolder(self.path / name)

    def final_evaluation(self, model: str) -> Path:
        """Return the path of the measures on the final shards: `model` is "start" (the initial model) or "promoted"."""
        return self.path / "final" / f"{model}.json"

    def read_final_evaluations(self) -> dict[str, dict[str, float]]:
        """Return the means on the final shards by model, "start" and "promoted", as far as they exist."""
        paths = {model: self.final_evaluation(model) for model in ("start", "promoted")}
        return {model: finite_means(read_json_object(path), str(path)) for model, path in paths.items() if path.is_file()}

    def ablation(self, name: str) -> StepFolder:
        """Return the folder of the ablation's training on the set of masks `name`."""
        return StepFolder(self.path / "ablation" / name)

    def read_config(self) -> dict[str, Any]:
        """Return the stored config with the key names of today.

        Raises ConfigError if there is none, or if it is not the config of a data-engine loop.
        """
        if not self.config.is_file():
            problem = "has no config.yaml" if self.path.is_dir() else "is not a folder"
            raise ConfigError(f"{self.path} {problem}: give the folder that sam-cycle wrote, such as runs/quickstart")
        config = load_stored(self.config)
        if not isinstance(config, dict):
            raise ConfigError(f"{self.config} is not a mapping: give the folder that sam-cycle wrote")
        if not isinstance(config.get("stages"), list) or not config["stages"]:
            raise ConfigError(f"{self.config} has no list `stages`: give the folder of a cycle, not of a training run")
        return {str(key): value for key, value in config.items()}

    @property
    def _corpus(self) -> Path:
        return self.path / "corpus.json"

    def read_corpus(self) -> dict[str, Any] | None:
        """Return the result of the corpus check, None before it was made."""
        return read_json_object(self._corpus) if self._corpus.is_file() else None

    def write_corpus(self, document: Mapping[str, Any]) -> None:
        """Store the result of the corpus check."""
        _write_json(self._corpus, document)

    @property
    def _process_times(self) -> Path:
        return self.path / "clock.json"

    def read_process_times(self) -> dict[str, dict[str, float]]:
        """Return the run time of each process: title -> {"seconds": ..., "devices": ...}, empty before the first."""
        return read_json_object(self._process_times) if self._process_times.is_file() else {}

    def add_process_time(self, title: str, seconds: float, *, devices: int) -> None:
        """Add `seconds` to the run time of the process `title`, which has `devices` GPUs (1 without a GPU)."""
        times = self.read_process_times()
        before = times.get(title, {}).get("seconds", 0.0)
        times[title] = {"seconds": round(before + seconds, 3), "devices": devices}
        _write_json(self._process_times, times)

    @property
    def _submitted_jobs(self) -> Path:
        return self.path / "jobs.json"

    def read_submitted_jobs(self) -> dict[str, str]:
        """Return the last submitted SLURM jobs: number -> name of the action, empty if none was submitted."""
        return read_json_object(self._submitted_jobs) if self._submitted_jobs.is_file() else {}

    def write_submitted_jobs(self, jobs: Mapping[str, str]) -> None:
        """Store the submitted SLURM jobs: number -> name of the action."""
        _write_json(self._submitted_jobs, jobs)

    def write_ablation(self, results: Mapping[str, Any]) -> None:
        """Store the results of the ablation: name of the set of masks -> its steps and measures."""
        _write_json(self.path / "ablation.json", results)

    def write_promotions(self, document: Mapping[str, Any]) -> None:
        """Store the promoted model and the history of all decisions."""
        _write_json(self.promotions, document)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ConfigError if the file is not JSON or holds something else."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a JSON {type(document).__name__}, expected an object")
    return document


def finite_means(evaluation: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return the numbers of an evaluation by name, without its other entries.

    `where` names the evaluation in messages. Raises ConfigError if a number is NaN or infinite.
    """
    means = {str(key): float(value) for key, value in evaluation.items() if isinstance(value, (int, float))}
    for key, value in means.items():
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {key} is {value}, expected a finite number: evaluate that model again")
    return means


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
