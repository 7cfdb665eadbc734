"""Outlines to masks, by pycocotools' rule: a pixel is in when its centre is, and corners are counted in pixels from the
picture's upper left corner, so that the outline 0 0, W 0, W H, 0 H covers all of a picture of W x H.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam_train.errors import ShardError
from sam_train.records import Rle

_FARTHEST_PX = 1e7
_MAX_STEPS = 20_000_000
"""pycocotools walks each outline in steps of a fifth of a pixel and holds them all: 16 bytes a step."""


def polygons_to_rle(polygons: Sequence[np.ndarray], *, height: int, width: int, counts: Counter[str], place: str) -> Rle | None:
    """The union of an object's outlines (each P x 2, float, xy in pixels) as RLE of [height, width]; None when it is empty.

    Counts, by outline: "polygon_below_3_points" and "polygon_without_pixels" (thinner than the pixels' centres are apart) do
    not count for the union; "polygon_clipped" reaches out of the picture and is cut at its border. Raises ShardError, naming
    `place`, for coordinates that are not finite or more than ten million pixels away, and outlines of absurd length.
    """
    parts = []
    for points in polygons:
        if not (np.abs(points) <= _FARTHEST_PX).all():  # also false for NaN
            raise ShardError(f"{place}: a polygon's corner is not finite or more than {_FARTHEST_PX:.0f} pixels away")
        if len(points) < 3:
            counts["polygon_below_3_points"] += 1
            continue
        if (points < 0).any() or (points > [width, height]).any():
            counts["polygon_clipped"] += 1
        part = _rle(_near(points, height, width), height, width, place)
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
        raise ShardError(f"{place}: a polygon of {len(points)} corners is {steps.sum() / 5:.0f} pixels long: no outline is")
    (rle,) = coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    return rle if coco_mask.area(rle) else None


def _near(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The outline cut where it is farther from the picture than the picture is large. Inside it only rounding changes.

    pycocotools drops what is outside by itself, to the pixel as others do, but walks all the way there.
    """
    margin = max(height, width)
    for axis, side in enumerate((width, height)):
        for sign, limit in ((-1.0, float(margin)), (1.0, float(side + margin))):
            if len(points) and (sign * points[:, axis] > limit).any():
                points = _cut(points, axis, sign, limit)
    return points


def _cut(points: np.ndarray, axis: int, sign: float, limit: float) -> np.ndarray:
    """Keep of a closed outline what has sign * coordinate <= limit (one step of Sutherland and Hodgman's)."""
    before = np.roll(points, 1, 0)
    end, start = sign * points[:, axis], sign * before[:, axis]
    crosses = (end <= limit) != (start <= limit)
    along = np.divide(limit - start, end - start, out=np.zeros_like(end), where=crosses)
    crossings = before + along[:, None] * (points - before)
    return np.stack([crossings, points], 1)[np.stack([crosses, end <= limit], 1)]
