"""Stage three, fully automatic: a point grid and the paper's filters (paper, sections 4 and B), or text prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from data_engine.annotators import AnnotationResult
from data_engine.ledger import Counts
from data_engine.structures import SourceImage
from sam_train.inference import GeneratedMask, GridMaskGenerator, MaskGenerator
from sam_train.model import Sam


class FullyAutomatic:
    """Fully automatic stage: a generator makes all masks, without an annotator."""

    name = "fully_automatic"
    annotator_name = "automatic"
    needs_model = True

    def __init__(self, generator: MaskGenerator) -> None:
        self.generator = generator

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """Return the masks that the generator keeps; see `Stage.infer`. The returned call resizes the masks to the image."""
        if model is None:
            raise ValueError("the fully automatic stage needs a model")
        generator = self.generator
        if isinstance(generator, GridMaskGenerator):
            candidates = generator.infer(model, image.image)
            return lambda: self._result(*generator.postprocess(*candidates))
        masks, dropped = generator.generate(model, image.image)
        return lambda: self._result(masks, dropped)

    def _result(self, masks: list[GeneratedMask], dropped: Counter[str]) -> AnnotationResult:
        counts = Counts({f"dropped/{reason}": number for reason, number in dropped.items()})
        counts.add({"masks_automatic": len(masks)})
        return AnnotationResult(masks=masks, counts=counts)
