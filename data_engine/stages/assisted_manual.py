"""Stage one: an annotator clicks, the model answers (paper, section 4)."""

from __future__ import annotations

from collections.abc import Callable

from data_engine.annotators import Annotator, Work
from data_engine.stages.base import whole
from data_engine.structures import SourceImage
from sam_train.inference import Predictor
from sam_train.model import Sam


class AssistedManual:
    """Without a model, which is how everything starts, the annotator draws each mask."""

    name = "assisted_manual"
    needs_model = False

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.annotator_name = annotator.name

    def begin(self, model: Sam | None, image: SourceImage) -> Callable[[], Work]:
        """All masks by the annotator."""
        predictor = None
        if model is not None:
            predictor = Predictor(model)
            predictor.set_image(image.image)
        return whole(self.annotator.annotate(image, predictor, []))
