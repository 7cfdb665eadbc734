"""Random patterns that are computed, not photographed: noise, gratings, cells, in random colours.

A field is H x W float32 of about mean 0 and standard deviation 1; colours turn it into H x W x 3 float32 in [0, 255].
Images of such processes train features that transfer to photographs (Baradad et al. 2021, "Learning to see by looking at noise").
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "H W"]
Pixels = Float[np.ndarray, "H W 3"]


def random_pattern(rng: np.random.Generator, *, height: int, width: int) -> Pixels:
    """Return a random pattern: of one or two fields, warped, unevenly lit and grainy at random."""
    pixels = _colour(rng, _random_field(rng, height, width))
    if rng.random() < 0.3:
        steepness, offset = rng.uniform(2, 12), rng.uniform(-1, 1)
        share = _sigmoid(_noise(rng, height, width) * steepness - offset)[..., None]
        pixels += (_colour(rng, _noise(rng, height, width)) - pixels) * share
    if rng.random() < 0.5:
        light = _noise(rng, height, width, coarsest=1.0, persistence=0.3)
        pixels *= 1 + np.float32(rng.uniform(0.05, 0.35)) * light[..., None]
    if rng.random() < 0.6:
        pixels += np.float32(rng.uniform(2, 16)) * _grain(rng, height, width)[..., None]
    return np.clip(pixels, 0, 255)


def random_colour(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Return a random colour, grey more often than vivid."""
    return _palette(rng)[0]


def _random_field(rng: np.random.Generator, height: int, width: int) -> Field:
    kind = rng.choice(5, p=[0.42, 0.16, 0.2, 0.12, 0.1])
    if kind == 4:  # almost plain: a gradient
        return _noise(rng, height, width, coarsest=rng.uniform(0.8, 2.5), persistence=0.2) * np.float32(rng.uniform(0.1, 1))
    if kind == 3:
        regular = _grating if rng.random() < 0.5 else _cells
        field = _noise(rng, height, width) * np.float32(rng.uniform(0.2, 1)) + regular(rng, height, width)
    else:
        field = (_noise, _grating, _cells)[kind](rng, height, width)
    return _warp(rng, field, strength_px=_log_uniform(rng, 2, 25)) if rng.random() < 0.4 else field


def _noise(
    rng: np.random.Generator, height: int, width: int, coarsest: float | None = None, persistence: float | None = None
) -> Field:
    """Return value noise: random grids of doubling resolution, each weaker by the factor `persistence`.

    coarsest: cells across the image of the first grid. Both are drawn at random if they are not given.
    """
    cells = _log_uniform(rng, 0.8, 24) if coarsest is None else coarsest
    persistence = rng.uniform(0.35, 0.95) if persistence is None else persistence
    stretch = np.exp(rng.uniform(-1.4, 1.4)) if rng.random() < 0.35 else 1.0
    field, weight = np.zeros((height, width), np.float32), 1.0
    for _ in range(int(rng.integers(2, 7))):
        rows, columns = (int(np.clip(n, 2, side)) for n, side in ((cells * stretch, height), (cells / stretch, width)))
        grid = rng.standard_normal((rows + 1, columns + 1), np.float32)
        field += np.float32(weight) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * persistence, cells * 2
        if cells > max(height, width):
            break
    return (field - field.mean()) / (field.std() + np.float32(1e-6))


def _grating(rng: np.random.Generator, height: int, width: int) -> Field:
    """Return stripes, or the product or union of two sets of stripes, soft or sharp."""
    period, angle = _log_uniform(rng, 4, 50), rng.uniform(0, np.pi)
    ys, xs = _coordinates(height, width)
    along = (xs * np.cos(angle) + ys * np.sin(angle)) * (2 * np.pi / period)
    kind, sharpness = rng.integers(4), rng.uniform(1, 8)
    if kind == 0:
        return np.sin(along).astype(np.float32)
    if kind == 1:
        return np.tanh(sharpness * np.sin(along) + rng.uniform(-1, 1)).astype(np.float32)
    across = (ys * np.cos(angle) - xs * np.sin(angle)) * (2 * np.pi / (period * np.exp(rng.uniform(-0.7, 0.7))))
    waves = np.sin(along) * np.sin(across) if kind == 2 else np.maximum(np.sin(along), np.sin(across)) - 0.4
    return np.tanh(sharpness * waves).astype(np.float32)


def _cells(rng: np.random.Generator, height: int, width: int) -> Field:
    """Return Voronoi cells of jittered grid points: flat, with dark borders, as cones, or as cones of different heights."""
    size = int(_log_uniform(rng, 6, 60))
    shape = (height // size + 3, width // size + 3)
    jitter = rng.uniform(0.2, 1.0)
    points_y = (np.arange(shape[0])[:, None] - 0.5 + jitter * (rng.random(shape) - 0.5)) * size
    points_x = (np.arange(shape[1])[None] - 0.5 + jitter * (rng.random(shape) - 0.5)) * size
    values = rng.standard_normal(shape).astype(np.float32)
    ys, xs = _coordinates(height, width)
    rows, columns = (ys // size).astype(int) + 1, (xs // size).astype(int) + 1
    nearest, second = np.full((2, height, width), np.inf, np.float32)
    value = np.zeros((height, width), np.float32)
    for i in (rows - 1, rows, rows + 1):
        for j in (columns - 1, columns, columns + 1):
            distance = ((points_y[i, j] - ys) ** 2 + (points_x[i, j] - xs) ** 2).astype(np.float32)
            is_nearest = distance < nearest
            second = np.where(is_nearest, nearest, np.minimum(second, distance))
            value = np.where(is_nearest, values[i, j], value)
            nearest = np.where(is_nearest, distance, nearest)
    nearest, second = np.sqrt(nearest), np.sqrt(second)
    cones = 1 - 2 * nearest / size
    borders = np.exp(-np.square((second - nearest) / (0.08 * size)))
    return np.asarray((value, 0.6 * value - 1.5 * borders, cones, 0.5 * value + cones)[rng.integers(4)], np.float32)


def _warp(rng: np.random.Generator, field: Field, *, strength_px: float) -> Field:
    height, width = field.shape
    ys, xs = _coordinates(height, width)
    cells = rng.uniform(1.5, 6)
    maps = (grid + np.float32(strength_px) * _noise(rng, height, width, coarsest=cells) for grid in (xs, ys))
    return cv2.remap(field, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # type: ignore[call-overload]


def _grain(rng: np.random.Generator, height: int, width: int) -> Field:
    if rng.random() < 0.5:
        return rng.standard_normal((height, width), np.float32)
    return _noise(rng, height, width, coarsest=max(height, width) / 8, persistence=0.8)


def _colour(rng: np.random.Generator, field: Field) -> Pixels:
    """Map a field to colours: along a palette, smoothly or, rarely, in steps."""
    palette = _palette(rng)
    position = _sigmoid(field * rng.uniform(0.8, 2.5)) * (len(palette) - 1)
    if rng.random() < 0.15:
        position = np.round(position)
    first = np.clip(position.astype(int), 0, len(palette) - 2)
    share = (position - first)[..., None]
    return palette[first] * (1 - share) + palette[first + 1] * share


def _palette(rng: np.random.Generator) -> Float[np.ndarray, "P 3"]:
    """Return 2 to 5 colours that differ in brightness more than in hue, as the colours of most surfaces do."""
    number = int(rng.integers(2, 6))
    vividness, contrast = _log_uniform(rng, 3, 70), _log_uniform(rng, 8, 90)
    brightness = rng.uniform(20, 235) + contrast * rng.standard_normal((number, 1))
    hue = rng.standard_normal(3)
    hues = hue - hue.mean() + rng.uniform(0, 0.8) * rng.standard_normal((number, 3))
    return np.clip(brightness + vividness * hues, 0, 255).astype(np.float32)


def _coordinates(height: int, width: int) -> tuple[Field, Field]:
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    return ys, xs


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x, dtype=np.float32))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
