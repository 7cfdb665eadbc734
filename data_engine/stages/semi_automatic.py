"""Stage two, semi-automatic: confident masks are prefilled, and the annotator adds the other objects (paper, section 4).

The paper detects the confident masks with a box detector of one class: generator@stage.generator=proposer. Without one they
come from the automatic generator with strict thresholds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from data_engine.annotators import AnnotationResult, Annotator
from data_engine.stages.base import immediate
from data_engine.structures import SourceImage
from sam_train.inference import MaskGenerator, Predictor, generate_masks
from sam_train.model import Sam


class SemiAutomatic:
    """Semi-automatic stage: prefill confident masks, let the annotator review them and add the missing ones."""

    name = "semi_automatic"
    needs_model = True

    def __init__(self, annotator: Annotator, generator: MaskGenerator) -> None:
        self.annotator, self.generator = annotator, generator
        self.annotator_name = annotator.name

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """Return the prefilled masks that passed the review, then the added ones; see `Stage.infer`."""
        if model is None:
            raise ValueError("the semi-automatic stage needs a model")
        predictor = Predictor(model)
        predictor.set_image(image.image)
        prefilled, _ = generate_masks(self.generator, model, image.image, predictor.get_image_embedding())
        verdicts, counts = self.annotator.review(image, prefilled)
        kept = [mask for mask, verdict in zip(prefilled, verdicts, strict=True) if verdict.kept]
        added = self.annotator.annotate(image, predictor, kept)
        counts.add(added.counts)
        counts.add(Counter(f"dropped/review_{verdict.reason}" for verdict in verdicts if not verdict.kept))
        counts.add({"masks_prefilled": len(kept)})
        return immediate(AnnotationResult(masks=kept + added.masks, counts=counts))
