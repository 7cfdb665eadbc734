"""Conversion of COCO's forms of a segmentation (polygons, run lengths, compressed RLE) to RLE."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import Rle
from sam_train.shards.importers.mask_records import parse_rle
from sam_train.shards.importers.polygons import polygons_to_rle

_NUMBERS = (int, float)


def segmentation_to_rle(segmentation: object, *, height: int, width: int, counts: Counter[str], place: str) -> Rle | None:
    """Convert COCO's three formats (polygons, run lengths, compressed RLE) to RLE; None for polygons without pixels.

    A single polygon that is not in a list, and polygons as lists of points [x, y], are counted as "polygon_normalised". Raises
    ShardError, naming `place`, if it is none of them or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return parse_rle(segmentation, height=height, width=width, place=place)
    if not isinstance(segmentation, list):
        raise ShardError(f"{place}: expected polygons or an RLE as 'segmentation', got {str(segmentation)[:80]}")
    is_single = bool(segmentation) and (_are_numbers(segmentation) or all(_is_point(part) for part in segmentation))
    counts.update(["polygon_normalised"] if is_single else [])
    parts: list[Any] = [segmentation] if is_single else segmentation
    polygons = [_polygon(part, counts, place) for part in parts]
    return polygons_to_rle(polygons, height=height, width=width, counts=counts, place=place)


def _polygon(polygon: object, counts: Counter[str], place: str) -> np.ndarray:
    if isinstance(polygon, list) and polygon and all(_is_point(point) for point in polygon):
        counts["polygon_normalised"] += 1
        return points_array(polygon, place=place)
    if not isinstance(polygon, list) or not _are_numbers(polygon) or len(polygon) % 2:
        raise ShardError(f"{place}: expected a polygon as a list x, y, x, y, ... of numbers, got {str(polygon)[:80]}")
    return points_array([polygon[i : i + 2] for i in range(0, len(polygon), 2)], place=place)


def points_array(points: object, *, place: str) -> np.ndarray:
    """Return a list of points [x, y] as P x 2 float64. Raises ShardError, naming `place`, for any other value."""
    if not isinstance(points, list) or not all(_is_point(point) for point in points):
        raise ShardError(f"{place}: expected a list of points [x, y], got {str(points)[:80]}")
    try:
        return np.asarray(points, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ShardError(f"{place}: a coordinate of a polygon is too large") from error


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and _are_numbers(value)


def _are_numbers(values: list[Any]) -> bool:
    return all(type(value) in _NUMBERS for value in values)
