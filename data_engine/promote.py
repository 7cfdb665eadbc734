"""Which model works in the engine: a pointer file and its history.

    promoted.json   {"checkpoint": "2_assisted_manual/train/model.pt", "sha256": ..., "history": [...]}

A candidate is promoted only if it is better on images that no stage sees.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_train.checkpoint import checkpoint_hash
from sam_train.errors import ConfigError
from sam_train.files import commit_file, written_whole

MEASURES = ("miou_at_1", "miou_at_3", "miou_at_5", "oracle_at_1")
"""What sam-evaluate measures and a model may be promoted by."""


def check_measure(measure: object) -> None:
    """Raise ConfigError unless a model may be promoted by `measure`."""
    if measure not in MEASURES:
        raise ConfigError(f"promote_by is {measure!r}, expected one of {', '.join(MEASURES)}")


def promoted(run_dir: Path) -> Path | None:
    """The checkpoint that the engine works with now, None before the first."""
    checkpoint = _read(run_dir)["checkpoint"]
    return run_dir / checkpoint if checkpoint else None


def is_judged(run_dir: Path, step: str) -> bool:
    """Whether the candidate of `step` has had its verdict."""
    return any(entry["step"] == step for entry in _read(run_dir)["history"])


def judge(run_dir: Path, *, step: str, candidate: Path, evaluation: Mapping[str, Any], measure: str) -> bool:
    """Promote `candidate` if its `measure` is above that of the model promoted now; the verdict is written either way.

    Judging a step twice changes nothing. Raises ConfigError when the evaluation has no such measure.
    """
    pointer = _read(run_dir)
    for entry in pointer["history"]:
        if entry["step"] == step:
            return bool(entry["promoted"])
    if measure not in evaluation:
        raise ConfigError(f"promotion goes by {measure!r}, the evaluation has {sorted(evaluation)}")
    best = max((e["evaluation"][measure] for e in pointer["history"] if e["promoted"]), default=float("-inf"))
    better = evaluation[measure] > best
    name, sha256 = candidate.relative_to(run_dir).as_posix(), checkpoint_hash(candidate)
    pointer["history"].append(
        {"step": step, "checkpoint": name, "sha256": sha256, "promoted": better, "evaluation": dict(evaluation)}
    )
    if better:
        pointer |= {"checkpoint": name, "sha256": sha256}
    commit_file(run_dir / "promoted.json", (json.dumps(pointer, indent=1) + "\n").encode())
    return better


def publish(run_dir: Path) -> None:
    """Put a copy of the promoted model at run_dir/model.pt, where people look for it."""
    checkpoint = promoted(run_dir)
    if checkpoint is not None:
        with written_whole(run_dir / "model.pt") as copy, checkpoint.open("rb") as original:
            shutil.copyfileobj(original, copy)


def _read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "promoted.json"
    return json.loads(path.read_bytes()) if path.is_file() else {"checkpoint": None, "sha256": None, "history": []}
