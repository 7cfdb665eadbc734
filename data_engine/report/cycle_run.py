"""The run folder as it lies on disk, read and checked, nothing measured yet.

runs/<name>/
  config.yaml                        resolved; `stages` says which steps there are
  0_start/                           the model that the cycle began with, if any
  1_assisted_manual/shards/          what the engine wrote
  1_assisted_manual/train/csv/       the trainer's log
  1_assisted_manual/evaluation.json  the new model on the held-out shards
  promoted.json                      which model the next step uses, and the history of that choice
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.cycle_folder.steps import START_STEP, parse_steps
from sam_train.config import load_stored
from sam_train.errors import ConfigError
from sam_train.shards import done_shards

MIOU_KEYS = ("miou_at_1", "miou_at_3", "miou_at_5")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """One step of the cycle. The folder may not be there yet."""

    step: str
    """Folder name: position and stage, `3_semi_automatic`."""
    stage: str
    folder: Path

    def shards(self) -> list[Path]:
        """Finished shards, in name order."""
        return done_shards(self.folder / "shards")

    def why_left_out(self) -> str:
        """Why the step annotated nothing, empty when it did or will."""
        path = self.folder / "left_out.json"
        return str(_read_json(path).get("why", "")) if path.is_file() else ""

    def num_unfinished(self) -> int:
        """Tars without a manifest: a writer still has them, or died with them."""
        return len(list((self.folder / "shards").glob("*.tar"))) - len(self.shards())

    def evaluation(self) -> dict[str, float] | None:
        """Held-out means of the model this step trained, None before they are measured."""
        path = self.folder / "evaluation.json"
        return _means(_read_json(path), path) if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRecord:
    """One entry of the history: a model that was trained, and whether it replaced the one before."""

    step: str
    checkpoint: Path
    sha256: str
    promoted: bool
    evaluation: dict[str, float]
    """Held-out means by name; empty when it was not measured."""
    rolled_back_from: str = ""
    """The step whose model this one, which had worked before, replaced by a command; empty for a verdict."""
    because: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRun:
    """A run of the cycle."""

    folder: Path
    config: dict[str, Any]
    stages: tuple[StageResult, ...]
    history: tuple[PromotionRecord, ...]
    """Oldest first."""

    @property
    def ground_truth(self) -> str | list[str] | None:
        """Shards with the corpus' true masks, None when the corpus has none."""
        return self._corpus("ground_truth")

    @property
    def heldout(self) -> str | list[str] | None:
        """Held-out shards, None when the config names none."""
        return self._corpus("heldout")

    def promoted_after(self, position: int) -> PromotionRecord | None:
        """The model in use once stage `position` (from 0) had its verdict; None before that, or when there was none yet."""
        judged = [trial.step if not trial.rolled_back_from else "" for trial in self.history]
        step = self.stages[position].step
        if step not in judged:
            return None
        return next((trial for trial in reversed(self.history[: judged.index(step) + 1]) if trial.promoted), None)

    def trial_of(self, stage: StageResult) -> PromotionRecord | None:
        """The model that `stage` trained, None before it was judged."""
        return next((trial for trial in self.history if trial.step == stage.step), None)

    def device_hours(self) -> float | None:
        """Hours of all processes that the cycle started, times their devices; None where no clock ran."""
        path = self.folder / "clock.json"
        times = _read_json(path).values() if path.is_file() else []
        return sum(time["seconds"] * time["devices"] for time in times) / 3600 if times else None

    def _corpus(self, name: str) -> str | list[str] | None:
        corpus = self.config.get("corpus")
        return (corpus.get(name) or None) if isinstance(corpus, Mapping) else None


def read_run(folder: Path) -> CycleRun:
    """Read config and history. Raises ConfigError when the folder is no run of the cycle or a file in it is malformed."""
    path = folder / "config.yaml"
    if not path.is_file():
        what = "has no config.yaml" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {what}: give the folder that sam-cycle wrote, for example runs/quickstart")
    config = _read_config(path)
    stages = config.get("stages")
    if not isinstance(stages, list) or not stages:
        raise ConfigError(f"{path} has no list `stages`: give the folder of a cycle, not of a training run")
    return CycleRun(
        folder=folder,
        config=config,
        stages=_stages(folder, config, stages, path),
        history=_read_history(folder),
    )


def _read_config(path: Path) -> dict[str, Any]:
    config = load_stored(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no mapping: it is not the config of a run")
    return {str(key): value for key, value in config.items()}


def _stages(folder: Path, config: Mapping[str, Any], entries: list[Any], path: Path) -> tuple[StageResult, ...]:
    try:
        steps = parse_steps(entries)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    start = config.get("initial_model") or {}
    began = (
        [StageResult(step=START_STEP, stage="start", folder=folder / START_STEP)]
        if start.get("checkpoint") or start.get("shards")
        else []
    )
    return (*began, *(StageResult(step=step.name, stage=step.stage, folder=folder / step.name) for step in steps))


def _read_history(folder: Path) -> tuple[PromotionRecord, ...]:
    path = folder / "promoted.json"
    if not path.is_file():
        return ()
    history = _read_json(path).get("history")
    if not isinstance(history, list):
        raise ConfigError(f"{path} has no list `history`, got {type(history).__name__}")
    return tuple(_trial(folder, entry, path) for entry in history)


def _trial(folder: Path, entry: Any, path: Path) -> PromotionRecord:
    wanted = {"step": str, "checkpoint": str, "sha256": str, "promoted": bool}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{path}: an entry of `history` is no object but {entry!r:.80}")
    for key, kind in wanted.items():
        if not isinstance(entry.get(key), kind):
            raise ConfigError(f"{path}: an entry of `history` needs `{key}` as {kind.__name__}, got {entry.get(key)!r:.80}")
    return PromotionRecord(
        step=entry["step"],
        checkpoint=folder / entry["checkpoint"],
        sha256=entry["sha256"],
        promoted=entry["promoted"],
        evaluation=_means(entry.get("evaluation") or {}, path),
        rolled_back_from=str(entry.get("rolled_back_from", "")),
        because=str(entry.get("because", "")),
    )


def _means(evaluation: Any, path: Path) -> dict[str, float]:
    if not isinstance(evaluation, Mapping):
        raise ConfigError(f"{path}: an evaluation is an object of means, got {evaluation!r:.80}")
    means = {str(key): float(value) for key, value in evaluation.items() if isinstance(value, (int, float))}
    for key, value in means.items():
        if not math.isfinite(value):
            raise ConfigError(f"{path}: {key} is {value}, expected a finite number: evaluate that model again")
    return means


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no object but {type(document).__name__}")
    return document
