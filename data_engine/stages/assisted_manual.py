"""Stage one, assisted manual: an annotator clicks, the model predicts masks (paper, section 4)."""

from __future__ import annotations

from collections.abc import Callable

from data_engine.annotators import AnnotationResult, Annotator
from data_engine.stages.base import immediate
from data_engine.structures import SourceImage
from sam_train.inference import Predictor
from sam_train.model import Sam


class AssistedManual:
    """Assisted-manual stage. Without a model, as at the start of a cycle, the annotator draws every mask by hand."""

    name = "assisted_manual"
    needs_model = False

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.annotator_name = annotator.name

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """Return the masks of the annotator; see `Stage.infer`."""
        predictor = None
        if model is not None:
            predictor = Predictor(model)
            predictor.set_image(image.image)
        return immediate(self.annotator.annotate(image, predictor, []))
