"""Grid points are cell centres; crops are SA-1B's, as one of its published annotations shows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sam_train.inference.grids import Crop, generate_crops, point_grid


def test_points_are_the_centres_of_the_cells_row_by_row() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(32).shape == (1024, 2)


def test_sa_560() -> None:
    """sa_560.jpg, 2250 x 1500: an annotation of it has crop_box [998, 0, 755, 567] and point [1233.9375, 177.1875]."""
    crop = Crop(x=998, y=0, width=755, height=567, layer=2)
    assert crop in generate_crops(1500, 2250, 2, 512 / 1500)
    points = point_grid(8) * [crop.width, crop.height] + [crop.x, crop.y]
    assert points[2 * 8 + 2].tolist() == [1233.9375, 177.1875]


def test_one_image_four_crops_sixteen_crops() -> None:
    found = generate_crops(1500, 2250, 2, 512 / 1500)
    assert found[0] == Crop(0, 0, 2250, 1500, 0)
    assert [sum(c.layer == layer for c in found) for layer in (0, 1, 2, 3)] == [1, 4, 16, 0]
    assert generate_crops(1500, 2250, 0, 512 / 1500) == found[:1]


@pytest.mark.parametrize(("height", "width"), [(1500, 2250), (64, 64), (97, 41), (33, 200)])
def test_crops_cover_the_image_and_overlap(height: int, width: int) -> None:
    for layer in (1, 2):
        overlap = int(512 / 1500 * min(height, width) * 2 / 2**layer)
        own = [c for c in generate_crops(height, width, 2, 512 / 1500) if c.layer == layer]
        covered = np.zeros((height, width), int)
        for crop in own:
            assert crop.x >= 0
            assert crop.y >= 0
            assert crop.x + crop.width <= width
            assert crop.y + crop.height <= height
            covered[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] += 1
        assert covered.min() == 1
        xs = sorted({(c.x, c.width) for c in own})
        for (left, crop_width), (right, _) in pairwise(xs):
            assert left + crop_width - right == overlap


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (6, 200), (8, 8)])
def test_crops_of_small_images_have_pixels_and_cover_the_image(height: int, width: int) -> None:
    crops = generate_crops(height, width, 4, 512 / 1500)
    for crop in crops:
        assert min(crop.width, crop.height) >= 1
        assert crop.x + crop.width <= width
        assert crop.y + crop.height <= height
    for layer in range(5):
        covered = np.zeros((height, width), bool)
        for crop in crops:
            if crop.layer == layer:
                covered[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] = True
        assert covered.all(), layer
