"""Thinning: small cases by hand, and comparison with scikit-image on noise."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import morphology

from sam_train.metrics.thinning import thin


def drawn(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


@pytest.mark.parametrize(
    "line",
    [
        drawn("....", ".##.", "...."),
        drawn("#....", ".#...", "..#..", "...#.", "....#"),
        drawn(".###.", "#...#", "#...#", ".###."),
        drawn("....", "....", "...."),
        drawn("#"),
    ],
)
def test_a_thin_line_stays(line: np.ndarray) -> None:
    assert np.array_equal(thin(line), line)


def test_a_bar_becomes_its_middle_line() -> None:
    bar = np.zeros((7, 20), bool)
    bar[2:5, 3:17] = True
    thinned = thin(bar)
    assert thinned[3].sum() == thinned.sum()
    assert thinned[3, 5:15].all()


def test_a_hole_stays_a_hole() -> None:
    ring = np.zeros((9, 9), bool)
    ring[1:8, 1:8] = True
    ring[4, 4] = False
    thinned = thin(ring)
    assert np.array_equal(thinned[3:6, 3:6], drawn(".#.", "#.#", ".#."))
    assert thinned.sum() == 4


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_equals_scikit_image(density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for height, width in ((1, 9), (7, 1), (40, 61), (33, 32)):
        noise = rng.random((height, width)) < density
        before = noise.copy()
        assert np.array_equal(thin(noise), morphology.thin(noise))
        assert np.array_equal(noise, before)


def test_thinning_twice_changes_nothing() -> None:
    noise = np.random.default_rng(0).random((50, 50)) < 0.6
    assert np.array_equal(thin(thin(noise)), thin(noise))
