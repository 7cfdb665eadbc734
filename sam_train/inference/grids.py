"""Point grids and zoomed-in crops of the automatic mask generator (paper, section B)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Crop:
    """A window of the image: left, top, width and height in pixels, and its zoom layer (0 is the whole image)."""

    x: int
    y: int
    width: int
    height: int
    layer: int

    @staticmethod
    def whole_image(height: int, width: int) -> Crop:
        """Return the crop of layer 0."""
        return Crop(0, 0, width, height, 0)


def point_grid(points_per_side: int) -> np.ndarray:
    """Return points_per_side ** 2 x 2 points, x and y in (0, 1), at the centres of the grid's cells."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], 1)


def generate_crops(height: int, width: int, num_layers: int, overlap_ratio: float) -> list[Crop]:
    """Return the whole image, then for each layer i a 2^i x 2^i partition with overlap (segment_anything/utils/amg.py).

    `overlap_ratio` is the overlap in layer 1 as a fraction of the short side; it halves with each layer.
    """
    crops = [Crop.whole_image(height, width)]
    for layer in range(1, num_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_width = math.ceil((overlap * (count - 1) + width) / count)
        crop_height = math.ceil((overlap * (count - 1) + height) / count)
        for column in range(count):
            for row in range(count):
                x, y = (crop_width - overlap) * column, (crop_height - overlap) * row
                crops.append(Crop(x, y, min(crop_width, width - x), min(crop_height, height - y), layer))
    return crops
