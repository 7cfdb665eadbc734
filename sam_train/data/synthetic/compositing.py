"""What makes a cut-out sit in a picture: its texture, its shadow, the light on it.

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
    """A crop of a random photograph, turned, zoomed and slightly recoloured; and which photograph it is.

    With `true_colours` nothing is recoloured, and 0.4 of the photograph or more lie in the crop.
    """
    place = int(rng.integers(len(photographs)))
    photograph = photographs[place]
    if true_colours:
        whole = max(height, width) / max(photograph.shape)
        crop = random_crop(rng, photograph, height=height, width=width, zoom=(whole, 2.5 * whole), turn=True)
        return crop, place
    crop = random_crop(rng, photograph, height=height, width=width, zoom=(0.4, 1.6), turn=True)
    return recolour(rng, crop, amount=rng.uniform(0.1, 0.6)), place


def recolour(rng: np.random.Generator, texture: np.ndarray, *, amount: float) -> np.ndarray:
    """The texture with other contrast, its mean moved by `amount` (0 to 1) of the way to a random colour."""
    mean = np.array(cv2.mean(texture)[:3])
    target = mean + amount * (rng.uniform(25, 230, 3) - mean)
    contrast = rng.uniform(0.5, 1.1)
    return texture * np.float32(contrast) + (target - contrast * mean).astype(np.float32)


def window_around(coverage: np.ndarray, *, margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is covered, `margin` pixels more on each side, inside the frame."""
    left, top, columns, rows = cv2.boundingRect((coverage > 0).astype(np.uint8))
    return slice(max(top - margin, 0), top + rows + margin), slice(max(left - margin, 0), left + columns + margin)


def set_apart(texture: np.ndarray, coverage: np.ndarray, canvas: np.ndarray, *, difference: float) -> np.ndarray:
    """Shift a texture until its mean differs by `difference` grey levels from the canvas around its outline.

    Photographs share their mean grey so often that a good part of the outlines could be seen by nobody. Only the
    mean is moved: locally an outline may still fade.
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
        direction = np.full(3, 3**-0.5) * (1 if around.mean() < 128 else -1)  # no room that way: lighten or darken
    return texture + (around + direction * difference - (gap + around)).astype(np.float32)


def cast_shadow(
    canvas: np.ndarray, coverage: np.ndarray, *, offset_xy: tuple[float, float], softness: float, strength: float
) -> np.ndarray:
    """The canvas darkened where an object of this coverage throws its shadow, blurred by `softness` pixels."""
    move = np.array([[1, 0, offset_xy[0]], [0, 1, offset_xy[1]]], np.float32)
    moved = cv2.warpAffine(coverage, move, coverage.shape[::-1])
    shadow = cv2.GaussianBlur(moved, (0, 0), softness)
    return canvas * (1 - strength * shadow)[..., None]


def shade(
    texture: np.ndarray, coverage: np.ndarray, *, edge_px: float, strength: float, light_xy: tuple[float, float]
) -> np.ndarray:
    """The texture lit from `light_xy` (a unit vector), as if its outline were rounded over `edge_px` pixels."""
    rounded = cv2.GaussianBlur(coverage, (0, 0), edge_px)
    slope_x = cv2.Sobel(rounded, cv2.CV_32F, 1, 0, scale=edge_px / 4)
    slope_y = cv2.Sobel(rounded, cv2.CV_32F, 0, 1, scale=edge_px / 4)
    # The slope points inward, and a rim is lit where it looks towards the light, hence the minus.
    rim = -(slope_x * light_xy[0] + slope_y * light_xy[1])
    return texture * np.clip(1 + strength * rim, 0.4, 1.6)[..., None]


def lay_over(canvas: np.ndarray, texture: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """The texture over the canvas, by its coverage."""
    return canvas + (np.clip(texture, 0, 255) - canvas) * coverage[..., None]
