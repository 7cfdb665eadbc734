"""Masks to outlines that give the same pixels back.

An outline here runs along the pixels' edges, not through their centres as OpenCV's contours do: its corners are whole numbers
counted from the picture's upper left corner, and whoever fills it by centres (pycocotools, and every renderer that counts from
corners) gets the mask, to the pixel.
"""

from __future__ import annotations

import cv2
import numpy as np


def mask_to_rings(mask: np.ndarray) -> list[np.ndarray]:
    """The borders of an H x W bool mask, of its parts and of its holes alike, each P x 2 int, xy, closed without repetition.

    A point is in the mask when it lies within an odd number of them. Only corners are listed. An empty mask has none.
    """
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return []
    padded = np.pad(mask[top : top + height, left : left + width], 1).astype(np.int8)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]  # the pixels about each crossing of edges
    # A border turns where one or three of the four are in, and twice where two are that touch at the crossing only.
    turns = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b))
    rows, columns = np.nonzero(turns)
    times = turns[rows, columns]
    rows, columns = np.repeat(rows, times), np.repeat(columns, times)
    # In a row of crossings each turn is one end of a horizontal edge: the first goes to the second, the third to the fourth.
    # So it is in columns, and edges of the two directions take turns along a ring.
    by_column = np.lexsort((rows, columns))
    other_end = np.empty(len(rows), np.int64)
    other_end[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    corners = np.stack([columns + left, rows + top], 1)
    return [corners[ring] for ring in _rings(other_end.tolist())]


def _rings(other_end: list[int]) -> list[list[int]]:
    rings, seen = [], bytearray(len(other_end))
    for first in range(len(other_end)):
        if seen[first]:
            continue
        ring, corner = [], first
        while not seen[corner]:
            across = corner ^ 1
            seen[corner] = seen[across] = 1
            ring += [corner, across]
            corner = other_end[across]
        rings.append(ring)
    return rings


def simplify_ring(ring: np.ndarray, tolerance_px: float) -> np.ndarray:
    """Fewer corners, none of the old farther than `tolerance_px` from the new ring; the ring itself where too few are left."""
    if tolerance_px <= 0:
        return ring
    fewer = cv2.approxPolyDP(ring.astype(np.int32), tolerance_px, closed=True).reshape(-1, 2)
    return fewer if len(fewer) >= 3 else ring


def join_rings(rings: list[np.ndarray]) -> np.ndarray:
    """One closed ring, P x 2, of several (at least one): from each a bridge leads to what is there already and back again.

    The two ways of a bridge enclose nothing, and filling by odd and even leaves holes open and parts apart.
    """
    first, *others = sorted(rings, key=len, reverse=True)
    whole = first
    for ring in others:
        at = int(np.abs(whole - ring[0]).sum(1).argmin())
        whole = np.concatenate([whole[: at + 1], ring, ring[:1], whole[at:]])
    return whole
