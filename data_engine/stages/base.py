"""What the engine expects of a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from data_engine.annotators import AnnotationResult
from data_engine.structures import SourceImage
from sam_train.model import Sam


@runtime_checkable  # so that the type checks of the tests can ask
class Stage(Protocol):
    """Makes the masks of one image."""

    name: str
    annotator_name: str
    """Goes into the provenance of each mask."""
    needs_model: bool

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """What needs the model is done now. The call that comes back does the rest, in any thread, and gives the image's
        masks and what they cost. Raises SkipSampleError."""
        ...


def immediate(work: AnnotationResult) -> Callable[[], AnnotationResult]:
    """For a stage that leaves nothing for later."""
    return lambda: work
