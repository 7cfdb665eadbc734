"""Where the automatic generator clicks: regular grids, over the image and over zoomed-in crops (paper, section B)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Crop:
    """A window of the image: left, top, width, height in pixels, and its zoom layer (0 is the whole image)."""

    x: int
    y: int
    width: int
    height: int
    layer: int


def point_grid(points_per_side: int) -> np.ndarray:
    """points_per_side ** 2 x 2, x and y in (0, 1), at the centres of the cells."""
    centres = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], 1)


def generate_crops(height: int, width: int, num_layers: int, overlap_ratio: float) -> list[Crop]:
    """The image, then for each layer i a 2^i x 2^i partition with overlap (segment_anything/utils/amg.py).

    `overlap_ratio` is a share of the short side in layer 1 and halves with each layer.
    """
    found = [Crop(0, 0, width, height, 0)]
    for layer in range(1, num_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_width = math.ceil((overlap * (count - 1) + width) / count)
        crop_height = math.ceil((overlap * (count - 1) + height) / count)
        for column in range(count):
            for row in range(count):
                x, y = (crop_width - overlap) * column, (crop_height - overlap) * row
                found.append(Crop(x, y, min(crop_width, width - x), min(crop_height, height - y), layer))
    return found
