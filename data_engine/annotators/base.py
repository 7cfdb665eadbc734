"""What a stage expects of an annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from data_engine.ledger import Counts
from data_engine.structures import ReviewVerdict, SourceImage
from sam_train.inference import GeneratedMask, PredictorLike


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationResult:
    """What an annotator did on one image."""

    masks: list[GeneratedMask]
    counts: Counts = field(default_factory=Counts)
    """clicks, seconds, masks_clicked, masks_drawn and so on."""


@runtime_checkable  # so that the type checks of the tests can ask
class Annotator(Protocol):
    """A person or a simulation of one."""

    name: str
    """Goes into the provenance of each mask."""

    def review(self, image: SourceImage, prefilled: Sequence[GeneratedMask]) -> tuple[list[ReviewVerdict], Counts]:
        """A verdict on each mask that was there before the annotator looked, and what looking cost."""
        ...

    def annotate(
        self, image: SourceImage, predictor: PredictorLike | None, existing: Sequence[GeneratedMask]
    ) -> AnnotationResult:
        """New masks for what `existing` does not cover. Without a model (`predictor` None) all are drawn by hand."""
        ...
