"""The annotator interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from data_engine.ledger import Counts
from data_engine.structures import ReviewVerdict, SourceImage
from sam_train.inference import GeneratedMask, PredictorLike


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationResult:
    """Masks that an annotator made on one image, and their cost."""

    masks: list[GeneratedMask]
    counts: Counts = field(default_factory=Counts)
    """Counters: clicks, seconds, masks_clicked, masks_drawn and so on."""


@runtime_checkable  # the runtime type checks of the tests need it
class Annotator(Protocol):
    """A person, or a simulation of one."""

    name: str
    """Name that is written into the provenance of each mask."""

    def review(self, image: SourceImage, prefilled: Sequence[GeneratedMask]) -> tuple[list[ReviewVerdict], Counts]:
        """Return a verdict on each prefilled mask, and the cost of the review."""
        ...

    def annotate(
        self, image: SourceImage, predictor: PredictorLike | None, existing: Sequence[GeneratedMask]
    ) -> AnnotationResult:
        """Return new masks for objects that `existing` does not cover.

        predictor: the model, which already holds the image; None means that all masks are drawn by hand.
        """
        ...
