"""A second set of random shapes, none of which is in `shapes`: corners, holes, thin and branching objects.

The scenes of patterns use it, so that the scenes of photographs are new to a model that was trained on those.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

Contour = Float[np.ndarray, "V 2"]

MORE_SHAPES = ("angular", "hollow", "crescent", "winding", "lumpy", "toothed", "leaf-shaped")
"""Names of the kinds: polygon, ring, crescent, ribbon, union of discs and bars, gear, leaf."""
_PROBABILITIES = (0.2, 0.1, 0.1, 0.16, 0.2, 0.1, 0.14)
_NUM_VERTICES = 192
_DRAWING_SIDE = 512  # side of the image in which ribbons and unions are drawn


def random_contours(rng: np.random.Generator) -> tuple[list[Contour], str]:
    """Return the contours of a random shape and its name, one of MORE_SHAPES.

    A contour is vertices x 2 (x, y); a point is inside the shape if it is inside an odd number of contours. The shape is centred
    at the mean of its first contour and randomly rotated; its farthest vertex is at distance 1.
    """
    kind = rng.choice(len(MORE_SHAPES), p=_PROBABILITIES)
    contours = (_polygon, _ring, _crescent, _ribbon, _union, _gear, _leaf)[kind](rng)
    centre = contours[0].mean(0)
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = max(np.linalg.norm(contour - centre, axis=1).max() for contour in contours)
    return [(contour - centre) @ rotation / size for contour in contours], MORE_SHAPES[kind]


def _polygon(rng: np.random.Generator) -> list[Contour]:
    corners = int(rng.integers(3, 9))
    angles = np.sort((np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners)
    radii = rng.uniform(0.55, 1, corners)
    outline = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1) * [1, rng.uniform(0.4, 1)]
    return [_rounded(_resampled(outline), int(rng.integers(0, 9)))]


def _ring(rng: np.random.Generator) -> list[Contour]:
    exponent = rng.uniform(2, 8)
    circle = _circle(_NUM_VERTICES)
    radii = (np.abs(circle) ** exponent).sum(1) ** (-1 / exponent)
    outer = circle * radii[:, None] * [1, rng.uniform(0.55, 1)]
    return [outer, outer * rng.uniform(0.35, 0.75)]


def _crescent(rng: np.random.Generator) -> list[Contour]:
    """Return the unit disc without a second disc, whose centre lies to the right."""
    offset, radius = rng.uniform(0.35, 0.8), rng.uniform(0.7, 1.05)
    outline = _circle(_NUM_VERTICES)
    is_cut = np.linalg.norm(outline - [offset, 0], axis=1) < radius
    edge = offset - np.sqrt(np.maximum(radius**2 - outline[:, 1] ** 2, 0))
    outline[is_cut, 0] = np.minimum(edge, outline[:, 0])[is_cut]
    return [_rounded(_resampled(outline), 1)]


def _ribbon(rng: np.random.Generator) -> list[Contour]:
    """Return a band of changing width along a smooth random walk; where the walk closes, the band has a hole."""
    steps, samples, smoothing = int(rng.integers(3, 6)), 96, 13
    walk = np.cumsum(rng.standard_normal((steps, 2)), 0)
    path = np.stack([np.interp(np.linspace(0, steps - 1, samples), range(steps), axis) for axis in walk.T], 1)
    padded = np.pad(path, ((smoothing, smoothing), (0, 0)), "edge")
    window = np.ones(2 * smoothing + 1) / (2 * smoothing + 1)
    path = np.stack([np.convolve(axis, window, "valid") for axis in padded.T], 1)
    path = (path - path.mean(0)) / np.abs(path - path.mean(0)).max()
    phase = np.linspace(0, rng.uniform(1, 9), samples) + rng.uniform(0, 6)
    radii = rng.uniform(0.06, 0.22) * (1 + 0.5 * np.sin(phase))
    drawing = np.zeros((_DRAWING_SIDE, _DRAWING_SIDE), np.uint8)
    for (x, y), radius in zip(path * 180 + _DRAWING_SIDE / 2, radii, strict=True):
        cv2.circle(drawing, (int(x), int(y)), max(2, int(radius * 180)), 1, -1)
    return _outlines(drawing, rounding=2)


def _union(rng: np.random.Generator) -> list[Contour]:
    """Return a union of two to five discs and bars, each at the edge of the one before."""
    drawing = np.zeros((_DRAWING_SIDE, _DRAWING_SIDE), np.uint8)
    centre = np.full(2, _DRAWING_SIDE / 2)
    for _ in range(int(rng.integers(2, 6))):
        radius = rng.uniform(35, 90)
        if rng.random() < 0.5:
            cv2.circle(drawing, (int(centre[0]), int(centre[1])), int(radius), 1, -1)
        else:
            size, angle = (2 * radius, radius * rng.uniform(0.7, 2)), rng.uniform(0, 180) if rng.random() < 0.5 else 0.0
            cv2.fillPoly(drawing, [cv2.boxPoints(((centre[0], centre[1]), size, angle)).astype(np.int32)], 1)
        direction = rng.uniform(0, 2 * np.pi)
        centre = np.clip(centre + 0.9 * radius * np.array([np.cos(direction), np.sin(direction)]), 100, _DRAWING_SIDE - 100)
    return _outlines(drawing, rounding=int(rng.integers(0, 5)))


def _gear(rng: np.random.Generator) -> list[Contour]:
    circle, teeth = _circle(2 * _NUM_VERTICES), int(rng.integers(5, 14))
    angles = np.linspace(0, 2 * np.pi, 2 * _NUM_VERTICES, endpoint=False)
    radii = 1 - rng.uniform(0.1, 0.35) * (np.sin(teeth * angles) > rng.uniform(-0.5, 0.5))
    outline = _rounded(circle * radii[:, None] * [1, rng.uniform(0.6, 1)], int(rng.integers(1, 8)))
    return [outline, 0.35 * circle] if rng.random() < 0.4 else [outline]


def _leaf(rng: np.random.Generator) -> list[Contour]:
    angles = np.linspace(0, np.pi, _NUM_VERTICES // 2)
    x = np.cos(angles)
    half_width = np.sin(angles) ** rng.uniform(0.7, 1.6) * rng.uniform(0.15, 0.5)
    bend = rng.uniform(-0.4, 0.4) * (1 - x**2)
    return [np.concatenate([np.stack([x, bend + half_width], 1), np.stack([x, bend - half_width], 1)[::-1]])]


def _circle(vertices: int) -> Contour:
    angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _outlines(drawing: np.ndarray, *, rounding: int) -> list[Contour]:
    """Return the outlines of a drawing, outer ones and holes, without the tiny ones; the largest is first."""
    found, _ = cv2.findContours(drawing, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [contour[:, 0].astype(float) for contour in sorted(found, key=len, reverse=True) if len(contour) > 20]
    return [_rounded(_resampled(outline), rounding) for outline in outlines]


def _resampled(outline: Contour) -> Float[np.ndarray, "192 2"]:
    """Return vertices at equal distances along a closed outline."""
    closed = np.concatenate([outline, outline[:1]])
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    positions = np.linspace(0, lengths[-1], _NUM_VERTICES, endpoint=False)
    return np.stack([np.interp(positions, lengths, axis) for axis in closed.T], 1)


def _rounded(outline: Contour, window: int) -> Contour:
    """Round the corners of a closed outline with a moving average over `window` vertices on each side."""
    shifted = [np.roll(outline, shift, 0) for shift in range(-window, window + 1)]
    return np.mean(shifted, 0)
