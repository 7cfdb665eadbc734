"""Numbers of the paper (arXiv 2304.02643). Its curves are printed only as images, so they are not drawn here."""

from __future__ import annotations

from dataclasses import dataclass

MASKS_PER_IMAGE_BINS: tuple[tuple[int, int | None, str], ...] = (
    (0, 10, "up to 10"),
    (11, 50, "11–50"),
    (51, 100, "51–100"),
    (101, 200, "101–200"),
    (201, None, "above 200"),
)
"""First, last and name of the bins of its Figure 6, which does not say to which bin 10 belongs."""

PREDICTED_IOU_THRESHOLD, STABILITY_THRESHOLD = 0.88, 0.95
"""Thresholds for the masks of its fully automatic stage (section B)."""


@dataclass(frozen=True, slots=True)
class ReferenceDataset:
    """A data set with the numbers of the paper."""

    name: str
    millions_of_images: float
    millions_of_masks: float

    @property
    def masks_per_image(self) -> float:
        """Masks per image, computed from the two numbers; the paper does not print it."""
        return self.millions_of_masks / self.millions_of_images


REFERENCE_DATASETS = (
    ReferenceDataset("SA-1B", 11.185362, 1129.0),
    ReferenceDataset("Open Images", 1.0, 2.7),
    ReferenceDataset("LVIS v1", 0.120, 1.5),
    ReferenceDataset("COCO", 0.123, 0.9),
    ReferenceDataset("ADE20K", 0.028, 0.7),
)
"""Figure 6's legend; SA-1B's counts are those of the released set."""

ENGINE_STAGES = (
    ("assisted manual", "20 rising to 44 masks an image, 34 falling to 14 s a mask", "4.3 million masks, 120,000 images"),
    ("semi-automatic", "44 rising to 72 masks an image, 34 s a mask", "5.9 million masks, 180,000 images"),
    ("fully automatic", "about 100 masks an image", "1.1 billion masks, 11 million images"),
)
"""Section 4: stage, its course, its result."""
