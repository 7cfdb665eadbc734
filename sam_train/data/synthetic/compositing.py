"""Compositing of objects into an image: their texture, shadow and shading.

Canvas and textures are H x W x 3 float32 in [0, 255], coverage is H x W float32 in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from sam_train.data.synthetic.photographs import random_crop

_RING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))


def random_texture(
    rng: np.random.Generator, photographs: tuple[np.ndarray, ...], *, height: int, width: int, true_colours: bool = False
) -> tuple[np.ndarray, int]:
    """Return a crop of a random photograph, rotated, zoomed and slightly recoloured, and the index of the photograph.

    With `true_colours` the crop is not recoloured, and shows 0.4 of the photograph or more.
    """
    index = int(rng.integers(len(photographs)))
    photograph = photographs[index]
    if true_colours:
        zoom_of_whole = max(height, width) / max(photograph.shape)
        zoom = (zoom_of_whole, 2.5 * zoom_of_whole)
        return random_crop(rng, photograph, height=height, width=width, zoom=zoom, rotate=True), index
    crop = random_crop(rng, photograph, height=height, width=width, zoom=(0.4, 1.6), rotate=True)
    return recolour(rng, crop, amount=rng.uniform(0.1, 0.6)), index


def recolour(rng: np.random.Generator, texture: np.ndarray, *, amount: float) -> np.ndarray:
    """Change the contrast of a texture at random, and move its mean by `amount` (0 to 1) of the way to a random colour."""
    mean = np.array(cv2.mean(texture)[:3])
    target = mean + amount * (rng.uniform(25, 230, 3) - mean)
    contrast = rng.uniform(0.5, 1.1)
    return texture * np.float32(contrast) + (target - contrast * mean).astype(np.float32)


def window_around(coverage: np.ndarray, *, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of the covered pixels, with `margin` pixels more on each side, inside the frame."""
    left, top, columns, rows = cv2.boundingRect((coverage > 0).astype(np.uint8))
    return slice(max(top - margin, 0), top + rows + margin), slice(max(left - margin, 0), left + columns + margin)


def ensure_contrast(texture: np.ndarray, coverage: np.ndarray, canvas: np.ndarray, *, difference: float) -> np.ndarray:
    """Shift a texture until its mean differs by `difference` grey levels from the canvas around the object.

    Photographs share their mean grey so often that many boundaries would otherwise be invisible. Only the mean is shifted:
    locally a boundary may still have no contrast.
    """
    inside = (coverage > 0.5).astype(np.uint8)
    ring = cv2.dilate(inside, _RING) - inside
    around = np.array(cv2.mean(canvas, mask=ring)[:3])
    gap = np.array(cv2.mean(texture, mask=inside)[:3]) - around
    length = float(np.linalg.norm(gap))
    if length >= difference:
        return texture
    direction = gap / length if length > 1 else np.full(3, 3**-0.5)
    if not np.all((around + direction * difference > 10) & (around + direction * difference < 245)):
        direction = np.full(3, 3**-0.5) * (1 if around.mean() < 128 else -1)  # out of range that way: lighten or darken
    return texture + (around + direction * difference - (gap + around)).astype(np.float32)


def cast_shadow(
    canvas: np.ndarray, coverage: np.ndarray, *, offset_xy: tuple[float, float], softness: float, strength: float
) -> np.ndarray:
    """Darken the canvas by the shadow of an object of this coverage, shifted by `offset_xy` and blurred by `softness` pixels."""
    shift = np.array([[1, 0, offset_xy[0]], [0, 1, offset_xy[1]]], np.float32)
    shifted = cv2.warpAffine(coverage, shift, coverage.shape[::-1])
    shadow = cv2.GaussianBlur(shifted, (0, 0), softness)
    return canvas * (1 - strength * shadow)[..., None]


def shade(
    texture: np.ndarray, coverage: np.ndarray, *, edge_px: float, strength: float, light_xy: tuple[float, float]
) -> np.ndarray:
    """Light the texture from `light_xy` (a unit vector), as if the object's edge were rounded over `edge_px` pixels."""
    rounded = cv2.GaussianBlur(coverage, (0, 0), edge_px)
    slope_x = cv2.Sobel(rounded, cv2.CV_32F, 1, 0, scale=edge_px / 4)
    slope_y = cv2.Sobel(rounded, cv2.CV_32F, 0, 1, scale=edge_px / 4)
    # The slope points inward, and a rim is lit where it faces the light, hence the minus.
    rim = -(slope_x * light_xy[0] + slope_y * light_xy[1])
    return texture * np.clip(1 + strength * rim, 0.4, 1.6)[..., None]


def alpha_blend(canvas: np.ndarray, texture: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Return the texture over the canvas, with the coverage as alpha."""
    return canvas + (np.clip(texture, 0, 255) - canvas) * coverage[..., None]
