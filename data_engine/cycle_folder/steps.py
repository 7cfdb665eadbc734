"""The steps of a cycle, as its config lists them: what each annotates, what its training sees, what it may cost.

    stages:
      - {stage: assisted_manual, num_images: 20, repeat: 6, train_on: annotated, budget: {annotator_hours: 40}}
      - {stage: semi_automatic, num_images: 100}
      - {stage: fully_automatic}               # the rest of the corpus

An entry becomes as many steps as `repeat` says, each with the next `num_images` pictures and a training of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam_train.errors import ConfigError

START_STEP = "0_start"
"""The step that a cycle begins with when it has a model or masks to begin with; it annotates nothing."""
ENTRY_KEYS = ("stage", "repeat", "first_image", "num_images", "train_on", "engine", "training", "budget")
TRAIN_ON = ("all", "annotated", "new")
"""All masks so far, those the cycle began with among them; those that its steps wrote, as the paper's stage one; those of the
step alone."""
BUDGET_KEYS = ("annotator_hours", "device_hours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Annotate, train, evaluate, promote: once."""

    name: str
    """Its folder: position and stage, `3_semi_automatic`."""
    stage: str
    entry: int
    """Position of its entry in `stages`, from 1; steps of one entry share its budget."""
    first_image: int | None = None
    """In the corpus' fixed order; None: behind what the steps before it annotated."""
    num_images: int | None = None
    """None: all that are left."""
    train_on: str = "all"
    engine: tuple[str, ...] = ()
    """Overrides of sam-engine."""
    training: tuple[str, ...] = ()
    """Overrides of sam-train."""
    budget: Mapping[str, float] = field(default_factory=dict)
    """Hours after which no further step of its entry begins, by name (BUDGET_KEYS)."""


def parse_steps(stages: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The steps in their order. Raises ConfigError for an entry that cannot be one, by its position."""
    steps: list[Step] = []
    for number, entry in enumerate(stages, start=1):
        _check(entry, number)
        for _ in range(entry.get("repeat") or 1):
            steps.append(_step(entry, number, position=len(steps) + 1))
    return tuple(steps)


def _step(entry: Mapping[str, Any], number: int, *, position: int) -> Step:
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


def _check(entry: Any, number: int) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("stage"), str):
        raise ConfigError(f"entry {number} of stages names no stage, got {entry!r:.80}: expected {{stage, num_images, ...}}")
    place = f"entry {number} of stages ({entry['stage']})"
    if unknown := [str(key) for key in entry if key not in ENTRY_KEYS]:
        raise ConfigError(f"{place} has {', '.join(unknown)}: expected some of {', '.join(ENTRY_KEYS)}")
    repeat, first = entry.get("repeat"), entry.get("first_image")
    for key, least in (("repeat", 1), ("first_image", 0), ("num_images", 1)):
        value = entry.get(key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigError(f"{place}: {key} is {value!r}, expected a whole number of at least {least}")
    if (repeat or 1) > 1 and (first is not None or entry.get("num_images") is None):
        raise ConfigError(f"{place} is repeated: it needs num_images and no first_image, so that each turn has its own pictures")
    if (entry.get("train_on") or "all") not in TRAIN_ON:
        raise ConfigError(f"{place}: train_on is {entry['train_on']!r}, expected one of {', '.join(TRAIN_ON)}")
    for name, hours in (entry.get("budget") or {}).items():
        if name not in BUDGET_KEYS or not isinstance(hours, (int, float)) or hours <= 0:
            raise ConfigError(f"{place}: budget {name}={hours!r}, expected hours above 0 for {' or '.join(BUDGET_KEYS)}")
