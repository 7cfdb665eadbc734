"""Why a run ended, stored as ended.json in its folder: it stays ended until the limit that ended it is raised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer

from sam_train.config import to_plain
from sam_train.files import atomic_write_bytes

FILE = "ended.json"


class EndReason(StrEnum):
    """Why a run ended."""

    DONE = "done"
    """It has made trainer.max_steps steps."""
    EARLY_STOPPING = "early stopping"
    """The monitored metric has not improved for `patience` validations, or a callback stopped the run."""
    MAX_TIME = "max_time"
    """trainer.max_time is over."""
    LIMIT = "limit"
    """Another limit of the trainer, such as limit_train_batches."""
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    NAN = "NaN"


def end_reason(trainer: Trainer) -> EndReason:
    """Return why the training of a trainer ended without an error."""
    if trainer.global_step >= trainer.max_steps:
        return EndReason.DONE
    if any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in trainer.callbacks):  # type: ignore[attr-defined]
        return EndReason.MAX_TIME
    return EndReason.EARLY_STOPPING if trainer.should_stop else EndReason.LIMIT


def write_end(run_dir: Path, reason: EndReason, cfg: DictConfig, *, step: int) -> None:
    """Store why a run ended after `step` steps, with the limits that it had."""
    document = {"reason": str(reason), "step": step, "limits": _limits(cfg)}
    atomic_write_bytes(run_dir / FILE, (json.dumps(document, indent=1) + "\n").encode())


def clear_end(run_dir: Path) -> None:
    """Remove the stored end of a run that is started again."""
    (run_dir / FILE).unlink(missing_ok=True)


def read_end(run_dir: Path) -> Mapping[str, Any] | None:
    """Return {"reason", "step", "limits"} of the run in a folder; None if it has not ended or an earlier version wrote it."""
    path = run_dir / FILE
    return json.loads(path.read_bytes()) if path.is_file() else None


def how_to_continue(end: Mapping[str, Any], cfg: DictConfig) -> str:
    """Return what to change so that an ended run goes on; "" if it goes on with this config."""
    before, now, reason = end["limits"], _limits(cfg), end["reason"]
    if reason == EndReason.DONE:
        return "raise trainer.max_steps" if now["max_steps"] <= end["step"] else ""
    if reason == EndReason.MAX_TIME:
        return "raise trainer.max_time" if now["max_time"] == before["max_time"] else ""
    if reason == EndReason.EARLY_STOPPING:
        same = (now["patience"], now["callbacks"]) == (before["patience"], before["callbacks"])
        return "raise patience" if same else ""
    return ""


def _limits(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a config that end a run. Only callbacks that stop a run are part of them."""
    callbacks = to_plain(cfg.get("callbacks") or {})
    stopping = {name: value for name, value in callbacks.items() if value and "EarlyStopping" in value.get("_target_", "")}
    max_time = cfg.trainer.get("max_time")
    return {
        "max_steps": cfg.trainer.max_steps,
        "max_time": None if max_time is None else str(max_time),
        "patience": cfg.get("patience"),
        "callbacks": stopping,
    }
