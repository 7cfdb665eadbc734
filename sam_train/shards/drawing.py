"""Drawing of masks over images, for visual inspection."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from sam_train.records import ImageRecord
from sam_train.rle import decode_rle

OPACITY = 0.42
"""Default opacity of the inside of a mask."""
SHADOW_COLOUR = (15, 15, 20)
# Hues advance by the golden ratio of the colour circle, so that neighbours in the list differ clearly whatever their number.
_GOLDEN_RATIO = 0.618034


def draw_masks(image: np.ndarray, record: ImageRecord, *, shard: str = "", opacity: float = OPACITY) -> np.ndarray:
    """Draw all masks of a record over `image`, larger masks below smaller ones; return a new image.

    `image` is the record's image at any size (HWC uint8 RGB). `opacity`, 0..1, is that of a mask's inside. The colour of a
    mask depends on its index in the record. Masks are decoded one at a time to limit memory.

    Raises ShardError for a mask whose RLE does not have the record's size.
    """
    order = sorted(range(len(record.masks)), key=lambda index: -record.masks[index].area)
    canvas = image.astype(np.float32)
    for index in order:
        fill_mask(canvas, _coverage(record, index, image.shape, shard), mask_colour(index), opacity=opacity)
    drawn = canvas.astype(np.uint8)
    thickness = max(1, round(max(image.shape) / 1000))
    for index in order:
        coverage = _coverage(record, index, image.shape, shard)
        draw_border(drawn, coverage, mask_colour(index, bright=True), thickness=thickness)
    return drawn


def mask_colour(index: int, *, bright: bool = False) -> tuple[int, int, int]:
    """Return the RGB colour of the mask with this index, the same in every image."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN_RATIO) % 1, 0.55 if bright else 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def resize_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize an HW bool mask to the canvas `shape`: HW float32, the covered fraction of each pixel, with smooth edges."""
    if mask.shape == shape[:2]:
        return mask.astype(np.float32)
    smaller = shape[0] < mask.shape[0]
    return cv2.resize(mask.astype(np.float32), shape[1::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def fill_mask(canvas: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int], *, opacity: float) -> None:
    """Blend a colour into the canvas (HWC float32), in place, in proportion to `coverage` (HW, 0..1)."""
    left, top, width, height = cv2.boundingRect((coverage > 0).astype(np.uint8))
    window = canvas[top : top + height, left : left + width]
    alpha = opacity * coverage[top : top + height, left : left + width, None]
    window += (np.array(colour, np.float32) - window) * alpha


def draw_border(
    canvas: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int], *, thickness: int, shadow: bool = False
) -> None:
    """Draw the border, including that of holes, of the area where `coverage` (HW, 0..1) exceeds 0.5 on HWC uint8, in place."""
    contours, _ = cv2.findContours((coverage > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if shadow:  # keeps a white border visible on a white background
        cv2.drawContours(canvas, contours, -1, SHADOW_COLOUR, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA)


def _coverage(record: ImageRecord, index: int, shape: tuple[int, ...], shard: str) -> np.ndarray:
    rle = record.masks[index].segmentation
    return resize_mask(decode_rle(rle, height=record.height, width=record.width, shard=shard, key=record.key), shape)
