"""An edge map of an image from the masks of everything in it (paper, sections 7.2 and D.2)."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

_PIXELS_AROUND = np.ones((3, 3), np.uint8)


class EdgeMap:
    """How strong the edge at each pixel is, and the gradient that made it so, across the edge. Empty at first."""

    def __init__(self, height: int, width: int) -> None:
        self.strength, self.gradient_x, self.gradient_y = np.zeros((3, height, width), np.float32)

    def add(self, probability: Float[np.ndarray, "H W"]) -> None:
        """Take in a mask's unthresholded probabilities: Sobel's gradient on the pixels around the mask, the stronger one stays.

        The paper sets values "to zero if they do not intersect with the outer boundary pixels of a mask": those that are not in
        the mask and touch it, by a side or a corner. Sobel's kernel, which it does not name, is 3 x 3.
        """
        mask = (probability > 0.5).astype(np.uint8)
        around = (cv2.dilate(mask, _PIXELS_AROUND) > mask).nonzero()
        gradient_x, gradient_y = (cv2.Sobel(probability, cv2.CV_32F, dx, 1 - dx)[around] for dx in (1, 0))
        strength = np.hypot(gradient_x, gradient_y)
        stronger = strength > self.strength[around]
        place = (around[0][stronger], around[1][stronger])
        self.strength[place] = strength[stronger]
        self.gradient_x[place], self.gradient_y[place] = gradient_x[stronger], gradient_y[stronger]

    def thinned(self, *, smooth_px: float = 0.7, border_px: int = 5, tolerance: float = 1.01) -> Float[np.ndarray, "H W"]:
        """The map in [0, 1], non-maxima suppressed: an edge goes where one a pixel away across it is stronger.

        Canny's rule (1986) with the gradient of the strongest mask, values between pixels interpolated. What the paper leaves
        open is as in Dollar and Zitnick's toolbox, by whose `edgesNms` edge maps are thinned since: they are smoothed before, by
        a triangle of radius 1, here a Gaussian with its deviation of `smooth_px`; an edge stays unless a neighbour is stronger
        than `tolerance` times itself; and within `border_px` of the frame it fades out linearly.
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
        stays = np.ones(scaled.shape, bool)
        for step in (-1, 1):
            beside = cv2.remap(
                scaled, columns + step * across_x, rows + step * across_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            stays &= scaled * tolerance >= beside
        return np.where(stays, scaled, 0).astype(np.float64) * _fading(scaled.shape, border_px)


def _fading(shape: tuple[int, ...], border_px: int) -> Float[np.ndarray, "H W"]:
    """1 inside, falling to 0 at the frame over `border_px` pixels."""
    height, width = shape
    sides = [np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width)]
    down, right = (np.minimum(side / max(1, min(border_px, n // 2)), 1) for side, n in zip(sides, (height, width), strict=True))
    return (down[:, None] * right) if border_px else np.ones(shape)
