"""The stage interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from data_engine.annotators import AnnotationResult
from data_engine.structures import SourceImage
from sam_train.model import Sam


@runtime_checkable  # the runtime type checks of the tests need it
class Stage(Protocol):
    """Makes the masks of one image."""

    name: str
    annotator_name: str
    """Name that is written into the provenance of each mask."""
    needs_model: bool
    """True if the stage requires a checkpoint."""

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """Run the model on an image now. The returned call does the rest, in any thread, and returns the masks and their cost.

        Raises SkipSampleError if the image cannot be used, ValueError if the stage needs a model and `model` is None.
        """
        ...


def immediate(result: AnnotationResult) -> Callable[[], AnnotationResult]:
    """Return a call that returns `result`, for a stage that is finished after `infer`."""
    return lambda: result
