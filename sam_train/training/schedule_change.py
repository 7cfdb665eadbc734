"""A smooth transition of the learning rate of a run that resumes with another number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from sam_train.optim import OptimizerFactory


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """A linear transition from the learning rate before the change to the schedule of the new length.

    Without it, a finished cosine run that is continued would jump from a learning rate of zero to that of the longer schedule.

    step: number of steps before the change. factor: that of the learning rate at this step before the change.
    ramp_steps: number of steps of the transition.
    """

    step: int
    factor: float
    ramp_steps: int

    def factor_at(self, step: int, scheduled: float) -> float:
        """Return the factor of the learning rate at `step`, where the schedule of the new length has the factor `scheduled`."""
        share = min(1.0, max(0, step - self.step) / self.ramp_steps)
        return self.factor + share * (scheduled - self.factor)

    def apply(self, schedule: LambdaLR) -> None:
        """Make a schedule of the new length follow the transition from `step` on."""
        schedule.lr_lambdas = [self._smoothed(scheduled) for scheduled in schedule.lr_lambdas]

    def _smoothed(self, scheduled: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: self.factor_at(step, scheduled(step)) if step >= self.step else scheduled(step)

    def describe(self, optimizer: OptimizerFactory, before: int, after: int) -> str:
        """Return a sentence on the change of a run from `before` to `after` steps."""
        end = self.step + self.ramp_steps
        rates = f"{optimizer.lr * self.factor:.2g} to {optimizer.lr * optimizer.lr_factor(end, after):.2g}"
        change = f"trainer.max_steps was {before} and is {after}, which changes the schedule of the learning rate"
        return f"{change}: it moves from {rates} over {self.ramp_steps} steps"


def change_of_length(
    optimizer: OptimizerFactory, step: int, before: int, after: int, earlier: ScheduleChange | None
) -> ScheduleChange | None:
    """Return the change of the schedule of a run that resumes at `step` with `after` instead of `before` steps.

    None if the learning rate at this step is the same, or if the run is still in its warm-up. earlier: the previous change.
    """
    factor = optimizer.lr_factor(step, before)
    if earlier:
        factor = earlier.factor_at(step, factor)
    if before == after or step < optimizer.warmup_steps or factor == optimizer.lr_factor(step, after):
        return None
    return ScheduleChange(step, factor, ramp_steps=max(1, optimizer.warmup_steps, (after - step) // 10))


def stored_schedule(max_steps: int, change: ScheduleChange | None) -> dict[str, Any]:
    """Return the length of a run's schedule and its change, for a checkpoint."""
    return {"max_steps": max_steps, "change": asdict(change) if change else None}
