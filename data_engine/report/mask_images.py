"""Masks drawn on images, and images as data URIs, so that the page is a single file."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from sam_train.records import Rle
from sam_train.rle import decode_rle, mask_to_box_xywh
from sam_train.shards import Sample, decode_jpeg, encode_jpeg
from sam_train.shards.drawing import SHADOW_COLOUR, draw_border, draw_masks, fill_mask, resize_mask

MAX_WIDTH_PX, MAX_HEIGHT_PX = 360, 420
JPEG_QUALITY = 86
TARGET_COLOUR, PREDICTION_COLOUR, CLICK_COLOUR = (255, 255, 255), (37, 132, 255), (34, 197, 94)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangular part of an image in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def data_uri(image: np.ndarray) -> str:
    """Return an image (HWC uint8 RGB) as the `src` of an <img>."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, JPEG_QUALITY)).decode("ascii")


def decode_mask(sample: Sample, rle: Rle) -> np.ndarray:
    """Decode an RLE of the sample's image to HW bool. Raises ShardError if it has another size."""
    record = sample.record
    return decode_rle(rle, height=record.height, width=record.width, shard=sample.shard, key=record.key)


def draw_sample(sample: Sample) -> np.ndarray:
    """Draw all masks of a sample on a thumbnail of its image (HWC uint8), smaller masks over larger ones."""
    record = sample.record
    image = decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key)
    return draw_masks(to_thumbnail(image), record, shard=sample.shard)


def draw_target(image: np.ndarray, target: np.ndarray, click_xy: tuple[float, float], window: Window) -> np.ndarray:
    """Draw the border of the target mask and the click on the window of an image."""
    canvas = to_thumbnail(_crop(image, window))
    draw_border(canvas, resize_mask(_crop(target, window), canvas.shape), TARGET_COLOUR, thickness=2, shadow=True)
    draw_click(canvas, click_xy, window)
    return canvas


def draw_click(canvas: np.ndarray, click_xy: tuple[float, float], window: Window) -> None:
    """Draw a click (x, y in pixels of the image) on the thumbnail of a window, in place."""
    scale = canvas.shape[1] / (window.right - window.left)
    centre = (round((click_xy[0] + 0.5 - window.left) * scale), round((click_xy[1] + 0.5 - window.top) * scale))
    cv2.circle(canvas, centre, 8, SHADOW_COLOUR, -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, 7, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, 5, CLICK_COLOUR, -1, cv2.LINE_AA)


def draw_prediction(image: np.ndarray, target: np.ndarray, prediction: np.ndarray, window: Window) -> np.ndarray:
    """Fill the predicted mask and draw the border of the target mask on the window of an image."""
    canvas = to_thumbnail(_crop(image, window)).astype(np.float32)
    fill_mask(canvas, resize_mask(_crop(prediction, window), canvas.shape), PREDICTION_COLOUR, opacity=0.6)
    thumbnail = canvas.astype(np.uint8)
    draw_border(thumbnail, resize_mask(_crop(target, window), canvas.shape), TARGET_COLOUR, thickness=2, shadow=True)
    return thumbnail


def window_around(masks: list[np.ndarray]) -> Window:
    """Return a nearly square part of the image that contains all `masks` (HW bool, at least one not empty) with a margin."""
    height, width = masks[0].shape
    union = np.logical_or.reduce(masks)
    x, y, box_width, box_height = (int(number) for number in mask_to_box_xywh(union))
    longest = max(height, width)
    side = min(max(round(1.3 * max(box_width, box_height)), round(0.4 * longest)), longest)
    left = _clamp_start(x + box_width // 2 - side // 2, side, width)
    top = _clamp_start(y + box_height // 2 - side // 2, side, height)
    return Window(left, top, min(left + side, width), min(top + side, height))


def to_thumbnail(image: np.ndarray) -> np.ndarray:
    """Resize an image (HWC uint8) to the size at which the page shows it.

    A small image is enlarged before anything is drawn on it, so that the lines stay thin.
    """
    height, width = image.shape[:2]
    scale = min(MAX_WIDTH_PX / width, MAX_HEIGHT_PX / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _clamp_start(start: int, side: int, length: int) -> int:
    """Move the start of an interval of `side` pixels so that it lies in 0..length, as far as possible."""
    return max(0, min(start, length - side))


def _crop(pixels: np.ndarray, window: Window) -> np.ndarray:
    return np.ascontiguousarray(pixels[window.top : window.bottom, window.left : window.right])
