"""Masks drawn over their picture, for people."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from sam_train.masks import decode_rle
from sam_train.records import ImageRecord

OPACITY = 0.42
SHADOW_COLOUR = (15, 15, 20)
# Steps of the golden ratio around the colour circle: neighbours in the list are far apart in hue, however many there are.
_GOLDEN_RATIO = 0.618034


def draw_masks(image: np.ndarray, record: ImageRecord, *, shard: str = "", opacity: float = OPACITY) -> np.ndarray:
    """All masks of a record over `image` (HWC uint8 RGB, the record's picture at any size); the largest lie lowest.

    `opacity` is that of a mask's inside, 0..1. A mask has the colour of its place in the record. Masks are decoded one by
    one, so that many of a large picture fit.
    Raises ShardError for a mask that does not fit the record's size.
    """
    order = sorted(range(len(record.masks)), key=lambda index: -record.masks[index].area)
    canvas = image.astype(np.float32)
    for index in order:
        fill_mask(canvas, _soft(record, index, image.shape, shard), mask_colour(index), opacity=opacity)
    drawn = canvas.astype(np.uint8)
    thickness = max(1, round(max(image.shape) / 1000))
    for index in order:
        draw_border(drawn, _soft(record, index, image.shape, shard), mask_colour(index, bright=True), thickness=thickness)
    return drawn


def mask_colour(index: int, *, bright: bool = False) -> tuple[int, int, int]:
    """A colour of the circle, the same for the same index in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN_RATIO) % 1, 0.55 if bright else 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def resize_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """HW bool to the canvas: the share of each pixel that is covered, so that edges are smooth."""
    if mask.shape == shape[:2]:
        return mask.astype(np.float32)
    smaller = shape[0] < mask.shape[0]
    return cv2.resize(mask.astype(np.float32), shape[1::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def fill_mask(canvas: np.ndarray, soft: np.ndarray, colour: tuple[int, int, int], *, opacity: float) -> None:
    """Lay a colour over HWC float32 where `soft` (HW, 0..1) is."""
    left, top, width, height = cv2.boundingRect((soft > 0).astype(np.uint8))
    window = canvas[top : top + height, left : left + width]
    alpha = opacity * soft[top : top + height, left : left + width, None]
    window += (np.array(colour, np.float32) - window) * alpha


def draw_border(
    canvas: np.ndarray, soft: np.ndarray, colour: tuple[int, int, int], *, thickness: int, shadow: bool = False
) -> None:
    """Draw the border of what `soft` (HW, 0..1) covers by half, holes too, on HWC uint8."""
    contours, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if shadow:  # white on white cannot be seen without it
        cv2.drawContours(canvas, contours, -1, SHADOW_COLOUR, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA)


def _soft(record: ImageRecord, index: int, shape: tuple[int, ...], shard: str) -> np.ndarray:
    rle = record.masks[index].segmentation
    return resize_mask(decode_rle(rle, height=record.height, width=record.width, shard=shard, key=record.key), shape)
