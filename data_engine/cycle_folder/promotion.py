"""The promoted model, which the engine uses: a pointer to its checkpoint, and the history of all decisions.

    promoted.json   {"checkpoint": "2_assisted_manual/train/model.pt", "sha256": ..., "history": [...]}

A candidate is promoted only if it is better than the promoted model on images that no stage annotates or trains on. A
roll-back promotes a model again that was evaluated earlier; its entry in the history has the additional keys
`rolled_back_from` and `because`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.cycle_folder.folder import CycleFolder, finite_means, read_json_object
from sam_train.checkpoint import checkpoint_hash
from sam_train.errors import ConfigError
from sam_train.files import atomic_write

PROMOTION_MEASURES = ("miou_at_1", "miou_at_3", "miou_at_5", "oracle_at_1")
"""Measures of sam-evaluate by which models can be compared."""

_REQUIRED_KEYS = {"step": str, "checkpoint": str, "sha256": str, "promoted": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRecord:
    """One entry of the history: the decision about a candidate, or a roll-back."""

    step: str
    """The step that trained the model."""
    checkpoint: str
    """Path of the model, relative to the run folder, so that the folder can be moved."""
    sha256: str
    """SHA-256 of the checkpoint, hex."""
    promoted: bool
    evaluation: Mapping[str, Any]
    """Measures on the held-out shards, as sam-evaluate wrote them; empty if the model was not evaluated."""
    rolled_back_from: str = ""
    """The step whose model a roll-back replaced; empty for the decision about a candidate."""
    reason: str = ""
    """Reason that was given for a roll-back."""

    def means(self) -> dict[str, float]:
        """Return the numbers of `evaluation`. Raises ConfigError if one is NaN or infinite."""
        return finite_means(self.evaluation, f"evaluation of the model of {self.step}")

    def to_json(self) -> dict[str, Any]:
        """Return the entry of promoted.json."""
        entry = {key: getattr(self, key) for key in ("step", "checkpoint", "sha256", "promoted")}
        entry["evaluation"] = dict(self.evaluation)
        if self.rolled_back_from:
            entry |= {"rolled_back_from": self.rolled_back_from, "because": self.reason}
        return entry

    @classmethod
    def from_json(cls, entry: Any, path: Path) -> PromotionRecord:
        """Read an entry of the promoted.json at `path`. Raises ConfigError if a key is missing or of another type."""
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{path}: an entry of `history` is {entry!r:.80}, expected an object")
        for key, kind in _REQUIRED_KEYS.items():
            if not isinstance(entry.get(key), kind):
                raise ConfigError(f"{path}: an entry of `history` needs `{key}` as {kind.__name__}, got {entry.get(key)!r:.80}")
        evaluation = entry.get("evaluation") or {}
        if not isinstance(evaluation, Mapping):
            raise ConfigError(f"{path}: an evaluation is {evaluation!r:.80}, expected an object of means")
        return cls(
            **{key: entry[key] for key in _REQUIRED_KEYS},
            evaluation=evaluation,
            rolled_back_from=str(entry.get("rolled_back_from", "")),
            reason=str(entry.get("because", "")),
        )


def check_promotion_measure(measure: object) -> None:
    """Raise ConfigError unless models can be compared by `measure`."""
    if measure not in PROMOTION_MEASURES:
        raise ConfigError(f"promote_by is {measure!r}, expected one of {', '.join(PROMOTION_MEASURES)}")


def read_history(folder: CycleFolder) -> list[PromotionRecord]:
    """Return all decisions and roll-backs, oldest first. Raises ConfigError if promoted.json is malformed."""
    if not folder.promotions.is_file():
        return []
    history = read_json_object(folder.promotions).get("history")
    if not isinstance(history, list):
        raise ConfigError(f"{folder.promotions} has no list `history`, got {type(history).__name__}")
    return [PromotionRecord.from_json(entry, folder.promotions) for entry in history]


def promoted_checkpoint(folder: CycleFolder) -> Path | None:
    """Return the checkpoint that the engine uses now, None before the first promotion."""
    if not folder.promotions.is_file():
        return None
    checkpoint = read_json_object(folder.promotions)["checkpoint"]
    return folder.path / checkpoint if checkpoint else None


def has_decision(folder: CycleFolder, step: str) -> bool:
    """Return whether it was decided if the model of `step` is promoted."""
    return any(record.step == step for record in read_history(folder))


def promote_if_better(
    folder: CycleFolder,
    *,
    step: str,
    candidate: Path,
    evaluation: Mapping[str, Any],
    measure: str,
    min_gain: float = 0.0,
) -> bool:
    """Promote `candidate` if its `measure` exceeds that of the promoted model by more than `min_gain`; return the decision.

    The decision is stored in either case, once per step: a second call for the same step returns the first decision and
    changes nothing. The first candidate is always promoted. Raises ConfigError if the evaluation lacks the measure.
    """
    history = read_history(folder)
    for record in history:
        if record.step == step:
            return record.promoted
    if measure not in evaluation:
        raise ConfigError(f"models are compared by {measure!r}, the evaluation has {sorted(evaluation)}")
    current = _last_promoted(history)
    better = current is None or evaluation[measure] > current.evaluation[measure] + min_gain
    record = PromotionRecord(
        step=step,
        checkpoint=candidate.relative_to(folder.path).as_posix(),
        sha256=checkpoint_hash(candidate),
        promoted=better,
        evaluation=dict(evaluation),
    )
    _write(folder, [*history, record])
    return better


def roll_back(folder: CycleFolder, *, step: str, reason: str = "") -> str:
    """Promote the model of an earlier `step` again; return the step whose model it replaces.

    Raises ConfigError if no model of such a step was evaluated, if it is promoted already, or if its file is not the
    one that was evaluated.
    """
    history = read_history(folder)
    by_step = {record.step: record for record in history}
    if step not in by_step:
        raise ConfigError(f"{folder.path} has evaluated no model of {step!r}: expected one of {', '.join(by_step) or 'none yet'}")
    current, record = _last_promoted(history), by_step[step]
    assert current is not None, "the first candidate is always promoted"
    if record.sha256 == current.sha256:
        raise ConfigError(f"the model of {step} is promoted already")
    checkpoint = folder.path / record.checkpoint
    if (sha256 := checkpoint_hash(checkpoint)) != record.sha256:
        hashes = f"its SHA-256 is {sha256[:12]}, expected {record.sha256[:12]}"
        raise ConfigError(f"{checkpoint} is not the model that was evaluated: {hashes}")
    roll_back_record = PromotionRecord(
        step=step,
        checkpoint=record.checkpoint,
        sha256=record.sha256,
        promoted=True,
        evaluation=record.evaluation,
        rolled_back_from=current.step,
        reason=reason,
    )
    _write(folder, [*history, roll_back_record])
    return current.step


def export_promoted_model(folder: CycleFolder) -> None:
    """Copy the promoted model to model.pt at the top of the run folder."""
    checkpoint = promoted_checkpoint(folder)
    if checkpoint is not None:
        with atomic_write(folder.model) as copy, checkpoint.open("rb") as original:
            shutil.copyfileobj(original, copy)


def _last_promoted(history: list[PromotionRecord]) -> PromotionRecord | None:
    return next((record for record in reversed(history) if record.promoted), None)


def _write(folder: CycleFolder, history: list[PromotionRecord]) -> None:
    promoted = _last_promoted(history)
    pointer = {"checkpoint": promoted.checkpoint if promoted else None, "sha256": promoted.sha256 if promoted else None}
    folder.write_promotions({**pointer, "history": [record.to_json() for record in history]})
