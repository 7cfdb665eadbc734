"""Boundary IoU: agreement of contours, to which the IoU of large masks is insensitive (Cheng et al. 2021, arXiv 2103.16562)."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool

DILATION_RATIO = 0.02
"""Width of the boundary band as a share of the image diagonal, the released code's default."""


def boundary(mask: Bool[np.ndarray, "H W"], dilation_ratio: float = DILATION_RATIO) -> Bool[np.ndarray, "H W"]:
    """Return the mask's pixels within a band along its contour; image borders count as contour.

    The band of d = max(1, round(ratio * diagonal)) pixels is what d erosions by 3 x 3 remove (`mask_to_boundary` of
    boundary-iou-api); one erosion by (2 d + 1) x (2 d + 1) gives the same result.
    """
    band = max(1, round(dilation_ratio * float(np.hypot(*mask.shape))))
    eroded = np.zeros(mask.shape, np.uint8)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(mask.shape, bool)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # pixels outside the mask's box are zero anyway
    kernel = np.ones((2 * band + 1, 2 * band + 1), np.uint8)
    eroded[window] = cv2.erode(mask[window].astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (eroded == 0)


def boundary_iou(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"], dilation_ratio: float = DILATION_RATIO) -> float:
    """Return the intersection over union of the boundaries of two masks; 0 if both are empty."""
    edge_a, edge_b = boundary(a, dilation_ratio), boundary(b, dilation_ratio)
    return float((edge_a & edge_b).sum() / max(1, (edge_a | edge_b).sum()))
