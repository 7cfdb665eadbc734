"""The run folder of a data-engine loop, read and checked: its config, its stages and its history of promotions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.cycle_folder import START_STEP, CycleFolder, PromotionRecord, StepFolder, parse_steps
from data_engine.cycle_folder.folder import finite_means
from data_engine.cycle_folder.promotion import read_history
from sam_train.errors import ConfigError
from sam_train.shards import done_shards

MIOU_KEYS = ("miou_at_1", "miou_at_3", "miou_at_5")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The files that one step of the loop has written. Its folder need not exist yet."""

    step: str
    """Name of the step: position and stage, such as `3_semi_automatic`."""
    stage: str
    """Name of the stage; `start` for the initial model."""
    folder: StepFolder

    def shards(self) -> list[Path]:
        """Return the finished shards, sorted by name."""
        return done_shards(self.folder.shards)

    def num_unfinished(self) -> int:
        """Return the number of tars without a manifest, which are being written or were left by a killed writer."""
        return len(list(self.folder.shards.glob("*.tar"))) - len(self.shards())

    def evaluation(self) -> dict[str, float] | None:
        """Return the held-out means of the model that this step trained, None before it was evaluated."""
        if not self.folder.evaluation.is_file():
            return None
        return finite_means(self.folder.read_evaluation(), str(self.folder.evaluation))


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRun:
    """A data-engine loop, finished or not."""

    folder: CycleFolder
    config: dict[str, Any]
    stages: tuple[StageResult, ...]
    history: tuple[PromotionRecord, ...]
    """Decisions and roll-backs, oldest first."""

    @property
    def ground_truth(self) -> str | list[str] | None:
        """Shards with the ground-truth masks of the corpus, None if the config names none."""
        return self._corpus("ground_truth")

    @property
    def heldout(self) -> str | list[str] | None:
        """Held-out shards, None if the config names none."""
        return self._corpus("heldout")

    def promoted_after(self, position: int) -> PromotionRecord | None:
        """Return the promoted model after the decision on stage `position` (from 0), None before it or without a model."""
        decided = [record.step if not record.rolled_back_from else "" for record in self.history]
        step = self.stages[position].step
        if step not in decided:
            return None
        return next((record for record in reversed(self.history[: decided.index(step) + 1]) if record.promoted), None)

    def record_of(self, stage: StageResult) -> PromotionRecord | None:
        """Return the decision on the model that `stage` trained, None before there is one."""
        return next((record for record in self.history if record.step == stage.step), None)

    def device_hours(self) -> float | None:
        """Return the hours of all processes of the loop, times their devices; None if no run time was stored."""
        times = self.folder.read_process_times().values()
        return sum(time["seconds"] * time["devices"] for time in times) / 3600 if times else None

    def _corpus(self, name: str) -> str | list[str] | None:
        corpus = self.config.get("corpus")
        return (corpus.get(name) or None) if isinstance(corpus, Mapping) else None


def read_run(path: Path) -> CycleRun:
    """Read config and history. Raises ConfigError if `path` is not the folder of a loop, or if a file in it is malformed."""
    folder = CycleFolder(path)
    config = folder.read_config()
    return CycleRun(
        folder=folder,
        config=config,
        stages=_stages(folder, config),
        history=tuple(read_history(folder)),
    )


def _stages(folder: CycleFolder, config: Mapping[str, Any]) -> tuple[StageResult, ...]:
    try:
        steps = parse_steps(config["stages"])
    except ConfigError as error:
        raise ConfigError(f"{folder.config}: {error}") from error
    stages = [StageResult(step=step.name, stage=step.stage, folder=folder.step(step.name)) for step in steps]
    initial = config.get("initial_model") or {}
    if initial.get("checkpoint") or initial.get("shards"):
        stages.insert(0, StageResult(step=START_STEP, stage="start", folder=folder.step(START_STEP)))
    return tuple(stages)
