"""Which model works in the engine: a pointer file and its history.

    promoted.json   {"checkpoint": "2_assisted_manual/train/model.pt", "sha256": ..., "history": [...]}

A candidate is promoted only if it is better on images that no stage sees than the model that works then. Rolled back, a
model that worked earlier works again; its entry in the history has two more keys, `rolled_back_from` and `because`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_train.checkpoint import checkpoint_hash
from sam_train.errors import ConfigError
from sam_train.files import atomic_write, atomic_write_bytes

PROMOTION_MEASURES = ("miou_at_1", "miou_at_3", "miou_at_5", "oracle_at_1")
"""What sam-evaluate measures and a model may be promoted by."""


def check_promotion_measure(measure: object) -> None:
    """Raise ConfigError unless a model may be promoted by `measure`."""
    if measure not in PROMOTION_MEASURES:
        raise ConfigError(f"promote_by is {measure!r}, expected one of {', '.join(PROMOTION_MEASURES)}")


def promoted_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that the engine works with now, None before the first."""
    checkpoint = _read(run_dir)["checkpoint"]
    return run_dir / checkpoint if checkpoint else None


def has_decision(run_dir: Path, step: str) -> bool:
    """Whether the candidate of `step` has had its verdict."""
    return any(entry["step"] == step for entry in _read(run_dir)["history"])


def promote_if_better(
    run_dir: Path, *, step: str, candidate: Path, evaluation: Mapping[str, Any], measure: str, min_gain: float = 0.0
) -> bool:
    """Promote `candidate` if its `measure` is above that of the model promoted now, by more than `min_gain`; the verdict is
    written either way.

    Judging a step twice changes nothing. Raises ConfigError when the evaluation has no such measure.
    """
    pointer = _read(run_dir)
    for entry in pointer["history"]:
        if entry["step"] == step:
            return bool(entry["promoted"])
    if measure not in evaluation:
        raise ConfigError(f"promotion goes by {measure!r}, the evaluation has {sorted(evaluation)}")
    working = next((entry for entry in reversed(pointer["history"]) if entry["promoted"]), None)
    better = working is None or evaluation[measure] > working["evaluation"][measure] + min_gain
    name, sha256 = candidate.relative_to(run_dir).as_posix(), checkpoint_hash(candidate)
    pointer["history"].append(
        {"step": step, "checkpoint": name, "sha256": sha256, "promoted": better, "evaluation": dict(evaluation)}
    )
    if better:
        pointer |= {"checkpoint": name, "sha256": sha256}
    atomic_write_bytes(run_dir / "promoted.json", (json.dumps(pointer, indent=1) + "\n").encode())
    return better


def roll_back(run_dir: Path, *, step: str, reason: str = "") -> str:
    """Let the model of an earlier `step` work again; the step whose model worked until now.

    Raises ConfigError when nobody judged such a step, its model works already, or its file is not the one that was judged.
    """
    pointer = _read(run_dir)
    judged = {entry["step"]: entry for entry in pointer["history"]}
    if step not in judged:
        raise ConfigError(f"{run_dir} has judged no model of {step!r}: expected one of {', '.join(judged) or 'none yet'}")
    working = next(entry for entry in reversed(pointer["history"]) if entry["promoted"])
    entry = judged[step]
    if entry["sha256"] == working["sha256"]:
        raise ConfigError(f"the model of {step} works already")
    if (found := checkpoint_hash(run_dir / entry["checkpoint"])) != entry["sha256"]:
        hashes = f"its SHA-256 is {found[:12]}, expected {entry['sha256'][:12]}"
        raise ConfigError(f"{run_dir / entry['checkpoint']} is not the model that was judged: {hashes}")
    kept = {key: entry[key] for key in ("step", "checkpoint", "sha256", "evaluation")}
    pointer["history"].append({**kept, "promoted": True, "rolled_back_from": working["step"], "because": reason})
    pointer |= {"checkpoint": entry["checkpoint"], "sha256": entry["sha256"]}
    atomic_write_bytes(run_dir / "promoted.json", (json.dumps(pointer, indent=1) + "\n").encode())
    return str(working["step"])


def export_promoted_model(run_dir: Path) -> None:
    """Put a copy of the promoted model at run_dir/model.pt, where people look for it."""
    checkpoint = promoted_checkpoint(run_dir)
    if checkpoint is not None:
        with atomic_write(run_dir / "model.pt") as copy, checkpoint.open("rb") as original:
            shutil.copyfileobj(original, copy)


def history(run_dir: Path) -> list[dict[str, Any]]:
    """All verdicts and roll-backs, oldest first."""
    return list(_read(run_dir)["history"])


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "promoted.json"
    return json.loads(path.read_bytes()) if path.is_file() else {"checkpoint": None, "sha256": None, "history": []}
