"""An edge map of an image from the masks of all its objects (paper, sections 7.2 and D.2)."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)


class EdgeMap:
    """Edge strength at each pixel, and the gradient of the mask with the strongest edge there. Starts at zero everywhere."""

    def __init__(self, height: int, width: int) -> None:
        self.strength, self.gradient_x, self.gradient_y = np.zeros((3, height, width), np.float32)

    def add(self, probability: Float[np.ndarray, "H W"]) -> None:
        """Add a mask's probabilities: the Sobel gradient on its outer boundary, of which the maximum over masks is kept.

        The paper sets values "to zero if they do not intersect with the outer boundary pixels of a mask": pixels outside of the
        mask that touch it by a side or a corner. The size of the Sobel kernel, which the paper does not state, is 3 x 3.
        """
        mask = (probability > 0.5).astype(np.uint8)
        boundary = (cv2.dilate(mask, _NEIGHBOURHOOD) > mask).nonzero()
        gradient_x, gradient_y = (cv2.Sobel(probability, cv2.CV_32F, dx, 1 - dx)[boundary] for dx in (1, 0))
        strength = np.hypot(gradient_x, gradient_y)
        stronger = strength > self.strength[boundary]
        pixels = (boundary[0][stronger], boundary[1][stronger])
        self.strength[pixels] = strength[stronger]
        self.gradient_x[pixels], self.gradient_y[pixels] = gradient_x[stronger], gradient_y[stronger]

    def thinned(self, *, smooth_px: float = 0.7, border_px: int = 5, tolerance: float = 1.01) -> Float[np.ndarray, "H W"]:
        """Return the edge map in [0, 1] after non-maximum suppression across the edges.

        A pixel is suppressed if the strength one pixel away across the edge is larger: Canny's rule (1986) with the gradient of
        the strongest mask and bilinear interpolation. Details that the paper does not state follow `edgesNms` of Dollar and
        Zitnick's toolbox, which later work uses for thinning: maps are smoothed before (there by a triangle of radius 1, here by
        a Gaussian with its standard deviation, `smooth_px`); a pixel is kept unless a neighbour is stronger than `tolerance`
        times itself; and strengths fade out linearly within `border_px` of the image's border.
        """
        strength, gradient_x, gradient_y = (
            cv2.GaussianBlur(values, (0, 0), smooth_px) if smooth_px else values
            for values in (self.strength, self.gradient_x, self.gradient_y)
        )
        strongest = float(strength.max())
        if strongest == 0:
            return np.zeros(strength.shape)
        scaled: np.ndarray = strength / strongest
        length = np.maximum(np.hypot(gradient_x, gradient_y), np.finfo(np.float32).tiny)
        across_x, across_y = gradient_x / length, gradient_y / length
        rows, columns = np.indices(scaled.shape, dtype=np.float32)
        kept = np.ones(scaled.shape, bool)
        for step in (-1, 1):
            neighbour = cv2.remap(
                scaled, columns + step * across_x, rows + step * across_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            kept &= scaled * tolerance >= neighbour
        return np.where(kept, scaled, 0).astype(np.float64) * _border_weights(scaled.shape, border_px)


def _border_weights(shape: tuple[int, ...], border_px: int) -> Float[np.ndarray, "H W"]:
    """Return weights of 1 inside that fall linearly to 0 at the image's border over `border_px` pixels."""
    height, width = shape
    sides = [np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width)]
    down, right = (np.minimum(side / max(1, min(border_px, n // 2)), 1) for side, n in zip(sides, (height, width), strict=True))
    return (down[:, None] * right) if border_px else np.ones(shape)
