"""Conversion of polygons to masks by the rule of pycocotools.

A pixel is in the mask if its centre is in the polygon. Corners are counted in pixels from the upper left corner of the image, so
that the polygon 0 0, W 0, W H, 0 H covers an image of W x H completely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam_train.errors import ShardError
from sam_train.records import Rle

_MAX_COORDINATE_PX = 1e7
_MAX_STEPS = 20_000_000
"""Limit of a polygon's length. pycocotools stores 16 bytes for each fifth of a pixel along the polygon."""


def polygons_to_rle(polygons: Sequence[np.ndarray], *, height: int, width: int, counts: Counter[str], place: str) -> Rle | None:
    """Return the union of an object's polygons (each P x 2 float, xy in pixels) as RLE of [height, width]; None if it is empty.

    Counts polygons: "polygon_below_3_points" and "polygon_without_pixels" (it contains no pixel centre) are ignored in the union;
    "polygon_clipped" extends beyond the image and is clipped at its border. Raises ShardError, naming `place`, for coordinates
    that are NaN or inf or more than ten million pixels away, and for polygons of implausible length.
    """
    parts = []
    for points in polygons:
        if not (np.abs(points) <= _MAX_COORDINATE_PX).all():  # also false for NaN
            raise ShardError(f"{place}: a corner of a polygon is NaN or inf, or more than {_MAX_COORDINATE_PX:.0f} pixels away")
        if len(points) < 3:
            counts["polygon_below_3_points"] += 1
            continue
        if (points < 0).any() or (points > [width, height]).any():
            counts["polygon_clipped"] += 1
        part = _rle(_clip_to_surroundings(points, height, width), height, width, place)
        if part is None:
            counts["polygon_without_pixels"] += 1
        else:
            parts.append(part)
    if not parts:
        return None
    union = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
    return {"size": [height, width], "counts": union["counts"].decode("ascii")}


def _rle(points: np.ndarray, height: int, width: int, place: str) -> dict[str, Any] | None:
    if len(points) < 3:
        return None
    steps = 5 * np.abs(points - np.roll(points, 1, 0)).max(1)
    if steps.sum() > _MAX_STEPS:
        lengths = f"is {steps.sum() / 5:.0f} pixels long, at most {_MAX_STEPS // 5} are accepted"
        raise ShardError(f"{place}: a polygon of {len(points)} corners {lengths}")
    (rle,) = coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    return rle if coco_mask.area(rle) else None


def _clip_to_surroundings(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip a polygon to the image and a margin of the image's longer side around it.

    The mask changes only by rounding. pycocotools itself ignores what is outside the image, but its time and memory grow with
    the length of the polygon.
    """
    margin = max(height, width)
    for axis, side in enumerate((width, height)):
        for sign, limit in ((-1.0, float(margin)), (1.0, float(side + margin))):
            if len(points) and (sign * points[:, axis] > limit).any():
                points = _clip_half_plane(points, axis, sign, limit)
    return points


def _clip_half_plane(points: np.ndarray, axis: int, sign: float, limit: float) -> np.ndarray:
    """Clip a closed polygon to sign * coordinate <= limit (one step of the Sutherland-Hodgman algorithm)."""
    before = np.roll(points, 1, 0)
    end, start = sign * points[:, axis], sign * before[:, axis]
    crosses = (end <= limit) != (start <= limit)
    along = np.divide(limit - start, end - start, out=np.zeros_like(end), where=crosses)
    crossings = before + along[:, None] * (points - before)
    return np.stack([crossings, points], 1)[np.stack([crosses, end <= limit], 1)]
