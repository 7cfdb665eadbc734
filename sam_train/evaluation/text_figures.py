"""What words were answered with, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from sam_train.shards.drawing import draw_border, fill_mask, mask_colour, resize_mask

MAX_NAMES = 8
SIDE_PX = 240  # of a tile's picture, the longer one
CAPTION_PX = 20
OPACITY = 0.55
WHITE = (255, 255, 255)


def draw_predictions(
    image: UInt8[np.ndarray, "H W 3"],
    names: Sequence[str],
    answers: Sequence[Bool[np.ndarray, "H W"]],
    truths: Sequence[Bool[np.ndarray, "n H W"]],
    ious: Sequence[float],
) -> UInt8[np.ndarray, "h w 3"]:
    """A tile for each of the first names, side by side: the answer in colour, every mask of that name outlined in white, and
    below the name with the answer's IoU. Raises ValueError without a name."""
    if not names:
        raise ValueError("expected at least one name, got none")
    scale = SIDE_PX / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tiles = []
    for number, (name, answer, own, iou) in enumerate(zip(names, answers, truths, ious, strict=True)):
        if number == MAX_NAMES:
            break
        canvas = small.astype(np.float32)
        fill_mask(canvas, resize_mask(answer, small.shape), mask_colour(number), opacity=OPACITY)
        drawn = canvas.astype(np.uint8)
        for mask in own:
            draw_border(drawn, resize_mask(mask, small.shape), WHITE, thickness=1, shadow=True)
        tiles.append(np.vstack([drawn, _caption(f"{name}  {iou:.2f}", width)]))
    return np.hstack(tiles)


def _caption(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    strip = Image.new("RGB", (width, CAPTION_PX), "black")
    ImageDraw.Draw(strip).text((4, 3), text, fill="white", font=ImageFont.load_default(12))
    return np.asarray(strip)
