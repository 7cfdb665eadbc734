"""The budget of a stage: hours of annotators and of devices that its steps may take together."""

from __future__ import annotations

from collections.abc import Sequence

from data_engine.cycle_folder import CycleFolder, Step


def spent_hours(folder: CycleFolder, steps: Sequence[Step]) -> dict[str, float]:
    """Return the hours that `steps` took so far, by the names of BUDGET_KEYS.

    annotator_hours: time of the annotators, from the ledgers of finished annotations. For a person it is measured, for the
        simulated annotator it is the sum of the costs in its config.
    device_hours: wall-clock hours of the steps' processes, times the GPUs that they had (1 without a GPU).
    """
    seconds = sum(folder.step(step.name).annotator_seconds() for step in steps)
    names = {step.name for step in steps}
    times = folder.read_process_times().items()
    devices = sum(time["seconds"] * time["devices"] for title, time in times if title.partition(": ")[0] in names)
    return {"annotator_hours": seconds / 3600, "device_hours": devices / 3600}


def budget_exceeded_reason(folder: CycleFolder, step: Step, steps: Sequence[Step]) -> str:
    """Return in a sentence why `step` must not begin; an empty string while some of its entry's budget is left."""
    same_entry = [other for other in steps if other.entry == step.entry]
    hours = spent_hours(folder, same_entry)
    exceeded = [
        f"{hours[name]:.3g} of {limit:g} {name.replace('_', ' ')}" for name, limit in step.budget.items() if hours[name] >= limit
    ]
    return f"the budget of its stage is spent: {', '.join(exceeded)}" if exceeded else ""
