"""Point grids and zoomed-in crops of the automatic mask generator (paper, section B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam_train.inference.argument_checks import invalid

MAX_CROP_LAYERS = 6
"""Layer 6 alone has 4,096 crops, each of which is encoded."""


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


def check_point_grids(point_grids: Sequence[np.ndarray], num_layers: int) -> list[np.ndarray]:
    """Return the grids of all layers, N x 2 float64 each. Raises ValueError for fewer grids, other shapes or values."""
    if not isinstance(point_grids, list | tuple) or len(point_grids) < num_layers:
        raise invalid("point_grids", f"a list of {num_layers} arrays, one per crop layer", point_grids)
    grids = [np.asarray(grid, np.float64) for grid in point_grids]
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not ((grid >= 0) & (grid <= 1)).all():
            raise invalid("point_grids", "arrays of shape N x 2 with x and y from 0 to 1", grid)
    return grids


def generate_crops(height: int, width: int, num_layers: int, overlap_ratio: float) -> list[Crop]:
    """Return the whole image, then for each layer i a 2^i x 2^i partition with overlap (segment_anything/utils/amg.py).

    `overlap_ratio` is the overlap in layer 1 as a fraction of the short side; it halves with each layer. Crops that would lie
    outside a small image are omitted.
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
                if x < width and y < height:
                    crops.append(Crop(x, y, min(crop_width, width - x), min(crop_height, height - y), layer))
    return crops
