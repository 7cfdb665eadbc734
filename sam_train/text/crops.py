"""Square crops of objects, as input of CLIP's image tower (paper, section D.5)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCrop:
    """Square crop of S x S pixels around an object, and the object's mask in it."""

    pixels: UInt8[np.ndarray, "S S 3"]
    mask: Bool[np.ndarray, "S S"]


def crop_object(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], *, expansion: float, black_background: bool, size: int
) -> ObjectCrop:
    """Return a square crop around the centre of the object's box, resized to `size` x `size` pixels.

    expansion: side of the square, as a factor on the longer side of the box.
    black_background: set the pixels outside the mask to black. Pixels outside the image are always black.

    Raises ValueError for an empty mask.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        raise ValueError("cannot crop an object: its mask is empty")
    side = max(1, round(expansion * max(width, height)))
    start = round(left + (width - side) / 2), round(top + (height - side) / 2)
    pixels = _padded_window(image, *start, side)
    inside = _padded_window(mask.view(np.uint8), *start, side)
    if black_background:
        pixels = pixels * inside[..., None]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    resized = cv2.resize(pixels, (size, size), interpolation=interpolation)
    coverage = cv2.resize(inside * np.uint8(255), (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return ObjectCrop(pixels=resized, mask=coverage > 127)


def _padded_window(pixels: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Return a window of `side` x `side` pixels, zero outside the image."""
    window = np.zeros((side, side, *pixels.shape[2:]), pixels.dtype)
    rows = slice(max(top, 0), min(top + side, pixels.shape[0]))
    columns = slice(max(left, 0), min(left + side, pixels.shape[1]))
    window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[rows, columns]
    return window
