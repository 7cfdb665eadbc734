"""Stage three: a grid of clicks and the paper's filters, no person (paper, sections 4 and B)."""

from __future__ import annotations

from collections import Counter

from data_engine.annotators import Work
from data_engine.ledger import Counts
from data_engine.structures import Candidate, Origin, SourceImage
from sam_train.inference import AutomaticMaskGenerator
from sam_train.model import Sam
from sam_train.structures import PointLabel


class FullyAutomatic:
    """All masks by the generator."""

    name = "fully_automatic"
    annotator_name = "automatic"
    needs_model = True

    def __init__(self, generator: AutomaticMaskGenerator) -> None:
        self.generator = generator

    def annotate(self, model: Sam | None, image: SourceImage) -> Work:
        """What the generator keeps; no person spends time."""
        if model is None:
            raise ValueError("the fully automatic stage needs a model")
        candidates, dropped = automatic_candidates(self.generator, model, image)
        counts = Counts({f"dropped/{reason}": number for reason, number in dropped.items()})
        counts.add({"masks_automatic": len(candidates)})
        return Work(masks=candidates, counts=counts)


def automatic_candidates(
    generator: AutomaticMaskGenerator, model: Sam, image: SourceImage
) -> tuple[list[Candidate], Counter[str]]:
    """What the generator finds in an image, best first, and what it dropped by reason."""
    found, dropped = generator.generate(model, image.image)
    candidates = [
        Candidate(
            mask=m.mask,
            origin=Origin.GENERATED,
            predicted_iou=m.predicted_iou,
            stability_score=m.stability_score,
            crop_box=[float(v) for v in (m.crop.x, m.crop.y, m.crop.width, m.crop.height)],
            point_coords=[list(m.point_xy)],
            prompts=[[*m.point_xy, float(PointLabel.FOREGROUND)]],
            seconds=0.0,
        )
        for m in found
    ]
    return candidates, dropped
