"""Stage three: a grid of clicks and the paper's filters, no person (paper, sections 4 and B); or a list of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from data_engine.annotators import AnnotationResult
from data_engine.ledger import Counts
from data_engine.structures import Candidate, MaskOrigin, SourceImage
from sam_train.inference import AutomaticMaskGenerator, GeneratedMask, MaskGenerator
from sam_train.model import Sam
from sam_train.structures import PointLabel


class FullyAutomatic:
    """All masks by the generator."""

    name = "fully_automatic"
    annotator_name = "automatic"
    needs_model = True

    def __init__(self, generator: MaskGenerator) -> None:
        self.generator = generator

    def infer(self, model: Sam | None, image: SourceImage) -> Callable[[], AnnotationResult]:
        """What the generator keeps; no person spends time. Masks are brought to the size of the image later."""
        if model is None:
            raise ValueError("the fully automatic stage needs a model")
        generator = self.generator
        if isinstance(generator, AutomaticMaskGenerator):
            selection = generator.select(model, image.image)
            return lambda: self._work(*generator.finish(selection))
        found = generator.generate(model, image.image)
        return lambda: self._work(*found)

    def _work(self, found: Sequence[GeneratedMask], reasons: Counter[str]) -> AnnotationResult:
        candidates, dropped = automatic_candidates(found, reasons)
        counts = Counts({f"dropped/{reason}": number for reason, number in dropped.items()})
        counts.add({"masks_automatic": len(candidates)})
        return AnnotationResult(masks=candidates, counts=counts)


def automatic_candidates(found: Sequence[GeneratedMask], dropped: Counter[str]) -> tuple[list[Candidate], Counter[str]]:
    """What a generator found in an image, best first, and what it dropped by reason."""
    candidates = [
        Candidate(
            rle=m.rle,
            origin=MaskOrigin.GENERATED,
            predicted_iou=m.predicted_iou,
            stability_score=m.stability_score,
            crop_box=[float(v) for v in (m.crop.x, m.crop.y, m.crop.width, m.crop.height)],
            point_coords=[[x, y] for x, y, label in m.prompt if label in (PointLabel.FOREGROUND, PointLabel.BACKGROUND)],
            prompts=[[x, y, float(label)] for x, y, label in m.prompt],
            seconds=0.0,
            parent=m.parent,
            name=m.name,
        )
        for m in found
    ]
    return candidates, dropped
