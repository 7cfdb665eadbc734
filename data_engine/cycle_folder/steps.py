"""The steps of a data-engine loop as its config lists them.

    stages:
      - {stage: assisted_manual, num_images: 20, repeat: 6, train_on: annotated, budget: {annotator_hours: 40}}
      - {stage: semi_automatic, num_images: 100}
      - {stage: fully_automatic}               # the rest of the corpus

An entry stands for as many steps as `repeat` says. Each step annotates the next `num_images` images and trains a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam_train.errors import ConfigError

START_STEP = "0_start"
"""Name of the step that holds the initial model, if the config names a checkpoint or shards for it; it annotates nothing."""
ENTRY_KEYS = ("stage", "repeat", "first_image", "num_images", "train_on", "engine", "training", "budget")
TRAIN_ON = ("all", "annotated", "new")
"""Masks that the training of a step uses. all: those of all steps so far and `initial_model.shards`; annotated: those of all
steps so far, as in stage one of the paper; new: those of the step alone."""
BUDGET_KEYS = ("annotator_hours", "device_hours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One round of annotation, training, evaluation and promotion."""

    name: str
    """Name of its folder: position and stage, such as `3_semi_automatic`."""
    stage: str
    entry: int
    """Position of its entry in `stages`, from 1; the steps of one entry share a budget."""
    first_image: int | None = None
    """Index of its first image in the fixed order of the corpus; None: after the images of the steps before it."""
    num_images: int | None = None
    """Number of images to annotate; None: the rest of the corpus."""
    train_on: str = "all"
    """Masks that its training uses, one of TRAIN_ON."""
    engine: tuple[str, ...] = ()
    """Overrides of sam-engine."""
    training: tuple[str, ...] = ()
    """Overrides of sam-train."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Hours after which no further step of its entry begins, by name (BUDGET_KEYS)."""


def parse_steps(stages: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps in their order. Raises ConfigError with the position of an entry that is not valid."""
    steps: list[Step] = []
    for number, entry in enumerate(stages, start=1):
        _check_entry(entry, number)
        for _ in range(entry.get("repeat") or 1):
            steps.append(_parse_step(entry, number, position=len(steps) + 1))
    return tuple(steps)


def _parse_step(entry: Mapping[str, Any], number: int, *, position: int) -> Step:
    return Step(
        name=f"{position}_{entry['stage']}",
        stage=entry["stage"],
        entry=number,
        first_image=entry.get("first_image"),
        num_images=entry.get("num_images"),
        train_on=entry.get("train_on") or "all",
        engine=tuple(entry.get("engine") or ()),
        training=tuple(entry.get("training") or ()),
        budget=dict(entry.get("budget") or {}),
    )


def _check_entry(entry: Any, number: int) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("stage"), str):
        raise ConfigError(f"entry {number} of stages names no stage, got {entry!r:.80}: expected {{stage, num_images, ...}}")
    where = f"entry {number} of stages ({entry['stage']})"
    if unknown := [str(key) for key in entry if key not in ENTRY_KEYS]:
        raise ConfigError(f"{where} has unknown keys {', '.join(unknown)}: expected some of {', '.join(ENTRY_KEYS)}")
    for key, minimum in (("repeat", 1), ("first_image", 0), ("num_images", 1)):
        value = entry.get(key)
        if value is not None and (not isinstance(value, int) or value < minimum):
            raise ConfigError(f"{where}: {key} is {value!r}, expected an integer of at least {minimum}")
    repeat, first = entry.get("repeat") or 1, entry.get("first_image")
    if repeat > 1 and (first is not None or entry.get("num_images") is None):
        message = "is repeated: give num_images and no first_image, so that each of its steps has its own images"
        raise ConfigError(f"{where} {message}")
    if (entry.get("train_on") or "all") not in TRAIN_ON:
        raise ConfigError(f"{where}: train_on is {entry['train_on']!r}, expected one of {', '.join(TRAIN_ON)}")
    for name, hours in (entry.get("budget") or {}).items():
        if name not in BUDGET_KEYS or not isinstance(hours, (int, float)) or hours <= 0:
            raise ConfigError(f"{where}: budget {name}={hours!r}, expected hours above 0 for {' or '.join(BUDGET_KEYS)}")
