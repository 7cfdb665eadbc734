"""Stage two: confident masks are there before the annotator looks, who adds the rest (paper, section 4).

The paper finds the confident masks with a box detector of one class: generator@stage.generator=proposer. Where there is none yet
they come from the automatic generator with strict thresholds.
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
    """Prefill, review, add."""

    name = "semi_automatic"
    needs_model = True

    def __init__(self, annotator: Annotator, generator: MaskGenerator) -> None:
        self.annotator, self.generator = annotator, generator
        self.annotator_name = annotator.name

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """Prefilled masks that passed the review, then the annotator's own."""
        if model is None:
            raise ValueError("the semi-automatic stage needs a model")
        predictor = Predictor(model)
        predictor.set_image(image.image)
        prefilled, _ = generate_masks(self.generator, model, image.image, predictor.image_embeddings)
        verdicts, counts = self.annotator.review(image, prefilled)
        kept = [c for c, verdict in zip(prefilled, verdicts, strict=True) if verdict.kept]
        added = self.annotator.annotate(image, predictor, kept)
        counts.add(added.counts)
        counts.add(Counter(f"dropped/review_{verdict.reason}" for verdict in verdicts if not verdict.kept))
        counts.add({"masks_prefilled": len(kept)})
        return immediate(AnnotationResult(masks=kept + added.masks, counts=counts))
