"""The closing message of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sam_train.training.progress import describe_validation, format_seconds
from sam_train.training.run_end import EndReason

PARTS = {"val": "the model", "val_last": "the last", "val_before": "before training"}
"""Prefixes of validation figures in metrics.json, and the words for them."""


def _describe_part(metrics: Mapping[str, float], prefix: str, label: str) -> str:
    figures = {name.replace(f"{prefix}/", "val/", 1): v for name, v in metrics.items() if name.startswith(f"{prefix}/")}
    if not figures or not (text := describe_validation(figures)):
        return ""
    return f"{text}: {label}" + (f", of step {figures['val/step']:.0f}" if prefix != "val_before" else "")


def describe_result(
    metrics: Mapping[str, float],
    *,
    reason: EndReason,
    what: str,
    result: str,
    max_steps: int,
    loggers: Sequence[str],
    next_command: str,
) -> str:
    """Return what was trained, its figures, the time, the files and the next command, one line each.

    metrics: content of metrics.json. reason: why the run ended. what: name and size of the trained model. result: its path.
    """
    steps = f"{metrics['steps']:.0f} of {max_steps} steps"
    ended = "" if reason == EndReason.DONE else f", ended by {reason}"
    lines = [f"trained {what}: {steps} in {format_seconds(metrics['seconds'])}{ended}"]
    lines += [_describe_part(metrics, prefix, label) for prefix, label in PARTS.items()]
    lines += [f"loss {metrics['train/loss']:.3f}" if "train/loss" in metrics else ""]
    lines += [f"model: {result}", f"log: {', '.join(loggers)}", f"next: {next_command}"]
    return "\n".join(filter(None, lines))
