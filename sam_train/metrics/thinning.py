"""Thinning of binary edge maps to one pixel's width, as MATLAB's `bwmorph(edges, "thin", inf)`, which BSDS500 uses."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

# One bit for each neighbour, counter-clockwise from the east; rows go down.
_NEIGHBOURS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


def thin(edges: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Remove pixels until none can be removed without disconnecting or shortening a line (Guo and Hall 1989)."""
    image: np.ndarray = edges.astype(np.uint8)
    while True:
        before = image
        for removable in _removable_patterns():
            neighbours = cv2.filter2D(image, cv2.CV_8U, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
            image = np.where(cv2.LUT(neighbours, removable), 0, image)
        if np.array_equal(image, before):
            return image.astype(bool)


@cache
def _removable_patterns() -> tuple[UInt8[np.ndarray, " 256"], UInt8[np.ndarray, " 256"]]:
    """Return for each half-iteration a table over the 256 neighbour patterns: 1 if the pixel is removed, else 0.

    Conditions G1, G2 and G3 (G3' in the second half) of the documentation of bwmorph, with x1 ... x8 from the east.
    """
    codes = np.arange(256)
    x = [(codes >> bit & 1).astype(bool) for bit in range(8)]
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    ring = [*x, x1]
    crossings = sum((~ring[i] & (ring[i + 1] | ring[i + 2])).astype(int) for i in (0, 2, 4, 6))
    odd_pairs = sum((ring[i] | ring[i + 1]).astype(int) for i in (0, 2, 4, 6))
    even_pairs = sum((ring[i] | ring[i + 1]).astype(int) for i in (1, 3, 5, 7))
    fewest = np.minimum(odd_pairs, even_pairs)
    inessential = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    first = inessential & ~((x2 | x3 | ~x8) & x1)
    second = inessential & ~((x6 | x7 | ~x4) & x5)
    return first.astype(np.uint8), second.astype(np.uint8)
