"""An object cut out of its picture, as CLIP is shown it (paper, section D.5)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCrop:
    """A square of S x S pixels around an object."""

    pixels: UInt8[np.ndarray, "S S 3"]
    mask: Bool[np.ndarray, "S S"]


def crop_object(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], *, expansion: float, blank: bool, size: int
) -> ObjectCrop:
    """The square around the middle of the object's box, `expansion` times as long as the box's longer side, at `size` pixels.

    blank: what is not the object becomes black; outside the picture everything is. Raises ValueError for an empty mask.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        raise ValueError("an object without a pixel cannot be cut out")
    side = max(1, round(expansion * max(width, height)))
    start = round(left + (width - side) / 2), round(top + (height - side) / 2)
    pixels = _window(image, *start, side)
    inside = _window(mask.view(np.uint8), *start, side)
    if blank:
        pixels = pixels * inside[..., None]
    resampling = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    shown = cv2.resize(pixels, (size, size), interpolation=resampling)
    covered = cv2.resize(inside * np.uint8(255), (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return ObjectCrop(pixels=shown, mask=covered > 127)


def _window(pixels: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """`side` x `side` pixels, zero where there is no picture."""
    window = np.zeros((side, side, *pixels.shape[2:]), pixels.dtype)
    rows = slice(max(top, 0), min(top + side, pixels.shape[0]))
    columns = slice(max(left, 0), min(left + side, pixels.shape[1]))
    window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels[rows, columns]
    return window
