"""Boundary bands equal repeated erosions; properties of boundary IoU."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sam_train.metrics.boundary_iou import boundary, boundary_iou


def by_single_erosions(mask: np.ndarray, ratio: float) -> np.ndarray:
    """Compute the boundary as boundary-iou-api does: pad by a pixel, erode by 3 x 3 repeatedly."""
    band = max(1, round(ratio * float(np.hypot(*mask.shape))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=band)[1:-1, 1:-1]
    return mask & (eroded == 0)


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.05, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_equals_repeated_erosions(seed: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((70, 90)), (0, 0), 4) > 0.5
    assert mask.any()
    assert np.array_equal(boundary(mask, ratio), by_single_erosions(mask, ratio))


def test_image_borders_count_as_boundary() -> None:
    everything = np.ones((50, 100), bool)
    band = boundary(everything)  # 0.02 * 111.8: 2 pixels
    assert band.sum() == 50 * 100 - 46 * 96
    assert not band[2:-2, 2:-2].any()


def test_an_empty_mask_has_no_boundary() -> None:
    nothing = np.zeros((20, 30), bool)
    assert not boundary(nothing).any()
    assert boundary_iou(nothing, nothing) == 0


def test_a_shifted_large_mask_loses_more_of_its_boundary() -> None:
    square = np.zeros((200, 200), bool)
    square[50:150, 50:150] = True
    shifted = np.roll(square, 3, 0)
    iou = (square & shifted).sum() / (square | shifted).sum()
    assert iou == pytest.approx(97 / 103)
    # 0.02 of the diagonal are 6 pixels. Worked out on the two frames of that width.
    bands = [by_single_erosions(m, 0.02) for m in (square, shifted)]
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert boundary_iou(square, shifted) == pytest.approx(expected)
    assert boundary_iou(square, shifted) < iou - 0.2
    assert boundary_iou(square, square) == 1


def test_of_thin_masks_it_is_the_masks_iou() -> None:
    a, b = np.zeros((2, 40, 40), bool)
    a[10, 5:30], b[10, 10:35] = True, True
    assert boundary_iou(a, b) == pytest.approx(20 / 30)
