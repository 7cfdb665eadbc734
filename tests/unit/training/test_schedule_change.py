"""A run that resumes with another number of steps moves smoothly to the learning rates of its new schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sam_train.optim import OptimizerFactory
from sam_train.training.schedule_change import ScheduleChange, change_of_length

COSINE = OptimizerFactory(lr=1.0, warmup_steps=10, layer_decay=1.0, schedule="cosine")


def rates(optimizer: OptimizerFactory, max_steps: int, change: ScheduleChange | None) -> list[float]:
    """Return the learning rate of each step."""
    opt, schedule = optimizer.build(torch.nn.Linear(2, 2), max_steps)
    if change:
        change.apply(schedule)
    found = []
    for _ in range(max_steps):
        found.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return found


def test_a_finished_cosine_run_does_not_jump() -> None:
    jump = rates(COSINE, 1000, None)[100]
    change = change_of_length(COSINE, 100, 100, 1000, None)
    assert change == ScheduleChange(100, 0.0, ramp_steps=90)
    smooth = rates(COSINE, 1000, change)
    assert smooth[100] == pytest.approx(0.0, abs=1e-9)
    assert jump > 0.9
    assert max(b - a for a, b in pairwise(smooth[100:])) < 2 / 90
    assert smooth[190:] == rates(COSINE, 1000, None)[190:]
    assert smooth[:100] == rates(COSINE, 1000, None)[:100]


def test_a_second_change_begins_at_the_rate_of_the_first() -> None:
    first = change_of_length(COSINE, 100, 100, 1000, None)
    second = change_of_length(COSINE, 120, 1000, 2000, first)
    assert second is not None
    assert second.factor == rates(COSINE, 1000, first)[120]
    assert rates(COSINE, 2000, second)[120] == second.factor


@pytest.mark.parametrize(
    ("optimizer", "step", "after"),
    [
        (COSINE, 50, 100),
        (COSINE, 5, 1000),
        (OptimizerFactory(warmup_steps=10, schedule="step"), 50, 1000),
        (OptimizerFactory(warmup_steps=10, schedule="rsqrt", cooldown_steps=5), 50, 1000),
    ],
    ids=["same length", "in warm-up", "before the first milestone", "before the cool-down"],
)
def test_no_change_where_the_rate_does_not_depend_on_the_length(optimizer: OptimizerFactory, step: int, after: int) -> None:
    assert change_of_length(optimizer, step, 100, after, None) is None
