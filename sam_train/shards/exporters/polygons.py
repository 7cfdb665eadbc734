"""Conversion of masks to polygons that restore the same pixels.

A polygon here follows the edges of the pixels, not their centres as OpenCV's contours do: its corners are integers, counted from
the upper left corner of the image. Filling it by pixel centres (as pycocotools does, and every renderer that counts from corners)
restores the mask exactly.
"""

from __future__ import annotations

import cv2
import numpy as np


def mask_to_rings(mask: np.ndarray) -> list[np.ndarray]:
    """Return the borders of an H x W bool mask, of its parts and its holes: closed rings, each P x 2 int, xy.

    The first point is not repeated at the end. A point is in the mask if it is within an odd number of rings. Only corners are
    listed. An empty mask has no rings.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return []
    padded = np.pad(mask[top : top + height, left : left + width], 1).astype(np.int8)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]  # the four pixels around each grid point
    # A border turns where one or three of the four are in the mask, and twice where two diagonal ones are.
    turns = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b))
    rows, columns = np.nonzero(turns)
    times = turns[rows, columns]
    rows, columns = np.repeat(rows, times), np.repeat(columns, times)
    # In a row of grid points each turn is an end of a horizontal edge: the first joins the second, the third the fourth.
    # The same holds in columns, and horizontal and vertical edges alternate along a ring.
    by_column = np.lexsort((rows, columns))
    other_end = np.empty(len(rows), np.int64)
    other_end[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    corners = np.stack([columns + left, rows + top], 1)
    return [corners[ring] for ring in _rings(other_end.tolist())]


def _rings(other_end: list[int]) -> list[list[int]]:
    rings, visited = [], bytearray(len(other_end))
    for first in range(len(other_end)):
        if visited[first]:
            continue
        ring, corner = [], first
        while not visited[corner]:
            across = corner ^ 1
            visited[corner] = visited[across] = 1
            ring += [corner, across]
            corner = other_end[across]
        rings.append(ring)
    return rings


def simplify_ring(ring: np.ndarray, tolerance_px: float) -> np.ndarray:
    """Remove corners of a ring, P x 2, so that none is farther than `tolerance_px` from the new ring.

    Returns the ring unchanged if fewer than three corners would remain.
    """
    if tolerance_px <= 0:
        return ring
    fewer = cv2.approxPolyDP(ring.astype(np.int32), tolerance_px, closed=True).reshape(-1, 2)
    return fewer if len(fewer) >= 3 else ring


def join_rings(rings: list[np.ndarray]) -> np.ndarray:
    """Join one or more rings to one closed ring, P x 2, by bridges that lead to each ring and back.

    The two passes over a bridge enclose nothing, and filling by the even-odd rule keeps holes open and parts separate.
    """
    first, *others = sorted(rings, key=len, reverse=True)
    combined = first
    for ring in others:
        at = int(np.abs(combined - ring[0]).sum(1).argmin())
        combined = np.concatenate([combined[: at + 1], ring, ring[:1], combined[at:]])
    return combined
