"""The time that annotators spent in a loop, beside the time of drawing all of these masks by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_engine.report.stage_statistics import StageStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Annotation time of a loop, and the quality of the model that it led to. Fields have the names of report.json."""

    masks: int
    """Masks of the stages in which annotators worked."""
    annotator_hours: float
    """Hours that they took."""
    hours_by_hand: float
    """Hours of drawing all of these masks by hand, at the simulated annotator's cost of a drawn mask."""
    miou_at_1: float | None
    """Held-out mIoU after one click of the model that is in use after the last step."""
    miou_at_5: float | None


def compute_effort(stages: Sequence[StageStatistics]) -> Effort | None:
    """Return the account of all steps so far; None without masks of annotators, or if the cost of drawing them is not known."""
    annotated = [stage for stage in stages if stage.masks and stage.seconds_per_mask]
    if not annotated or not all("seconds_by_hand" in stage.counts for stage in annotated):
        return None
    last = next((stage for stage in reversed(stages) if stage.miou_at_1 is not None), None)
    return Effort(
        masks=sum(stage.masks or 0 for stage in annotated),
        annotator_hours=round(sum(stage.counts["seconds"] for stage in annotated) / 3600, 3),
        hours_by_hand=round(sum(stage.counts["seconds_by_hand"] for stage in annotated) / 3600, 3),
        miou_at_1=last.miou_at_1 if last else None,
        miou_at_5=last.miou_at_5 if last else None,
    )
