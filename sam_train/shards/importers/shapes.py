"""Masks of the shapes of annotation tools: polygons, rectangles, ellipses and circles.

Coordinates are in pixels from the upper left corner of the image; a pixel belongs to a shape if its centre is inside, as for the
polygons of COCO.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import Rle
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards.importers.polygons import polygons_to_rle

_ELLIPSE_CORNERS = 360


def rectangle_points(left: float, top: float, right: float, bottom: float, *, degrees: float = 0.0) -> np.ndarray:
    """Return the corners of a rectangle, 4 x 2, turned clockwise about its centre by `degrees`."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    return _turn(corners, np.array([(left + right) / 2, (top + bottom) / 2]), degrees)


def ellipse_points(x: float, y: float, radius_x: float, radius_y: float, *, degrees: float = 0.0) -> np.ndarray:
    """Return a polygon of an ellipse, 360 x 2, turned clockwise about its centre by `degrees`."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)
    points = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1)
    return _turn(points, np.array([x, y]), degrees)


def _turn(points: np.ndarray, centre: np.ndarray, degrees: float) -> np.ndarray:
    if not degrees:
        return points
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def paste(part: np.ndarray, left: int, top: int, *, height: int, width: int, place: str) -> np.ndarray:
    """Return an H x W bool mask with `part`, whose upper left pixel is at (left, top). Raises ShardError if it does not fit."""
    rows, columns = part.shape
    if left < 0 or top < 0 or top + rows > height or left + columns > width:
        raise ShardError(f"{place}: a mask of {columns} x {rows} at {left}, {top} does not fit the image of {width} x {height}")
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = part
    return mask


def union_to_rle(
    polygons: Sequence[np.ndarray], masks: Sequence[np.ndarray], *, height: int, width: int, counts: Counter[str], place: str
) -> Rle | None:
    """Return the union of an object's polygons (P x 2) and masks (H x W bool) as RLE, None if it has no pixels."""
    rle = polygons_to_rle(polygons, height=height, width=width, counts=counts, place=place) if polygons else None
    if not masks:
        return rle
    union = np.logical_or.reduce([*masks, *([decode_rle(rle, height=height, width=width)] if rle else [])])
    return encode_rle(union) if union.any() else None
