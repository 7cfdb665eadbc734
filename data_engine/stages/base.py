"""What the engine expects of a stage."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from data_engine.annotators import Work
from data_engine.structures import SourceImage
from sam_train.model import Sam


@runtime_checkable  # so that the type checks of the tests can ask
class Stage(Protocol):
    """Makes the masks of one image."""

    name: str
    annotator_name: str
    """Goes into the provenance of each mask."""
    needs_model: bool

    def annotate(self, model: Sam | None, image: SourceImage) -> Work:
        """The image's masks and what they cost."""
        ...
