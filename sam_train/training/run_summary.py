"""The closing message of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sam_train.training.progress import describe_validation, format_seconds


def describe_result(
    metrics: Mapping[str, float], *, what: str, result: str, max_steps: int, loggers: Sequence[str], next_command: str
) -> str:
    """Return what was trained, its figures, the time, the files and the next command, one line each.

    metrics: content of metrics.json. what: name and size of the trained model. result: path of the trained model.
    """
    steps = f"{metrics['steps']:.0f} of {max_steps} steps"
    lines = [f"trained {what}: {steps} in {format_seconds(metrics['seconds'])}"]
    figures = [describe_validation(metrics), f"loss {metrics['train/loss']:.3f}" if "train/loss" in metrics else ""]
    lines += [", ".join(filter(None, figures))]
    lines += [f"model: {result}", f"log: {', '.join(loggers)}", f"next: {next_command}"]
    return "\n".join(filter(None, lines))
