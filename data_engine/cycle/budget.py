"""When a stage has had enough: hours that its steps took of people and of devices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_engine.cycle_folder.steps import Step


def spent(run_dir: Path, steps: Sequence[Step], clock: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Hours that these steps took so far.

    annotator_hours: of annotators, as ledgers of finished annotations count them (a person's clock, a simulated one's
        stated prices). device_hours: wall-clock hours of the steps' processes, times the GPUs they had (1 without any).
    """
    ledgers = [run_dir / step.name / "shards" / "ledger.json" for step in steps]
    annotators = sum(_counts(path).get("seconds", 0.0) for path in ledgers if path.is_file())
    names = {step.name for step in steps}
    devices = sum(time["seconds"] * time["devices"] for title, time in clock.items() if title.partition(": ")[0] in names)
    return {"annotator_hours": annotators / 3600, "device_hours": devices / 3600}


def budget_exceeded_reason(run_dir: Path, step: Step, steps: Sequence[Step], clock: Mapping[str, Mapping[str, float]]) -> str:
    """Why `step` must not begin any more: a sentence, empty while there is something left of its entry's budget."""
    siblings = [other for other in steps if other.entry == step.entry]
    hours = spent(run_dir, siblings, clock)
    over = [
        f"{hours[name]:.3g} of {limit:g} {name.replace('_', ' ')}" for name, limit in step.budget.items() if hours[name] >= limit
    ]
    return f"the budget of its stage is spent: {', '.join(over)}" if over else ""


def _counts(ledger: Path) -> dict[str, Any]:
    return dict(json.loads(ledger.read_bytes())["counts"])
