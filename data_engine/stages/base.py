"""What the engine expects of a stage."""

from __future__ import annotations

from typing import Protocol

from data_engine.annotators import Work
from data_engine.structures import SourceImage
from sam_train.model import Sam


class Stage(Protocol):
    """Makes the masks of one image."""

    name: str
    annotator_name: str
    """Goes into the provenance of each mask."""
    needs_model: bool

    def annotate(self, model: Sam | None, image: SourceImage) -> Work:
        """The image's masks and what they cost."""
        ...
