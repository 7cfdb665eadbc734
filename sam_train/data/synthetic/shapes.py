"""Random smooth polygons, and their rasterization to pixel coverage."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SHAPES = ("wavy", "round", "square", "star-shaped", "curved")
"""Names of the kinds of polygon: blob, ellipse, rounded rectangle, star, bean."""
_NUM_VERTICES = 192
_SUPERSAMPLING = 4
_FRACTION_BITS = 6  # cv2.fillPoly takes fixed-point vertices


def random_polygon(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Return a random smooth polygon and its shape, one of SHAPES.

    The polygon is vertices x 2 (x, y), centred at 0 and randomly rotated; its farthest vertex is at distance 1.
    """
    kind = rng.choice(5, p=[0.34, 0.14, 0.2, 0.12, 0.2])
    polygon = (_blob, _ellipse, _rounded_rectangle, _star, _bean)[kind](rng)
    polygon = polygon - polygon.mean(0)
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return polygon @ rotation / np.linalg.norm(polygon, axis=1).max(), SHAPES[kind]


def rasterize(contours: Sequence[np.ndarray], *, height: int, width: int) -> np.ndarray:
    """Return the share of each pixel inside an odd number of contours (vertices x 2, in pixels): H x W float32 in [0, 1].

    Pixel (row, column) covers [column, column + 1) x [row, row + 1); contours are clipped to the frame. A shape is enlarged by up
    to a quarter of a pixel, because OpenCV also fills the supersampled pixels on its edge.
    """
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # fillPoly counts from pixel centres, hence the half.
    vertices = [np.round((contour * _SUPERSAMPLING - 0.5) * 2**_FRACTION_BITS).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, vertices, 255, shift=_FRACTION_BITS)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _angles() -> np.ndarray:
    return np.linspace(0, 2 * np.pi, _NUM_VERTICES, endpoint=False)


def _polar(radii: np.ndarray) -> np.ndarray:
    return np.stack([radii * np.cos(_angles()), radii * np.sin(_angles())], 1)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """Return a polygon whose radii are a short random Fourier series."""
    orders = np.arange(2, 8)
    amplitudes = rng.uniform(0, 0.6, len(orders)) / orders**0.8
    phases = rng.uniform(0, 2 * np.pi, len(orders))
    waves = amplitudes[:, None] * np.cos(orders[:, None] * _angles() + phases[:, None])
    return _polar(np.maximum(1 + waves.sum(0), 0.3))


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    return _polar(np.ones(_NUM_VERTICES)) * [1, rng.uniform(0.45, 1)]


def _rounded_rectangle(rng: np.random.Generator) -> np.ndarray:
    """Return a superellipse: of exponent 3 it resembles a cushion, of 10 a rectangle."""
    direction = _polar(np.ones(_NUM_VERTICES))
    exponent = rng.uniform(3, 10)
    radii = (np.abs(direction) ** exponent).sum(1) ** (-1 / exponent)
    return direction * radii[:, None] * [1, rng.uniform(0.4, 1)]


def _star(rng: np.random.Generator) -> np.ndarray:
    points, inner = rng.integers(3, 8), rng.uniform(0.45, 0.7)
    phase = (_angles() * points / (2 * np.pi)) % 1
    radii = inner + (1 - inner) * np.abs(2 * phase - 1)
    window = int(rng.integers(1, 9))  # a moving average around the circle rounds the tips
    shifted = [np.roll(radii, shift) for shift in range(-window, window + 1)]
    return _polar(np.mean(shifted, 0))


def _bean(rng: np.random.Generator) -> np.ndarray:
    """Return a long ellipse bent along a circle: from a banana to a horseshoe."""
    x, y = (_polar(np.ones(_NUM_VERTICES)) * [1, rng.uniform(0.22, 0.4)]).T
    bend = rng.uniform(0.6, 2.2)  # radians from the middle to each end
    return np.stack([(1 / bend + y) * np.sin(x * bend), (1 / bend + y) * np.cos(x * bend)], 1)
