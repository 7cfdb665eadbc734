"""Figures of the masks that were predicted from text prompts."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from sam_train.shards.drawing import draw_border, fill_mask, mask_colour, resize_mask

MAX_NAMES = 8
SIDE_PX = 240  # longer side of the image in a tile
CAPTION_PX = 20
OPACITY = 0.55
WHITE = (255, 255, 255)


def draw_predictions(
    image: UInt8[np.ndarray, "H W 3"],
    names: Sequence[str],
    masks: Sequence[Bool[np.ndarray, "H W"]],
    ground_truth: Sequence[Bool[np.ndarray, "n H W"]],
    ious: Sequence[float],
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a tile for each of the first `MAX_NAMES` names, side by side.

    A tile shows the predicted mask in colour, the borders of all ground-truth masks of the name in white, and below them the
    name with the prediction's IoU. image: uint8 RGB. Raises ValueError if there is no name.
    """
    if not names:
        raise ValueError("expected at least one name, got none")
    scale = SIDE_PX / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tiles = []
    for number, (name, mask, targets, iou) in enumerate(zip(names, masks, ground_truth, ious, strict=True)):
        if number == MAX_NAMES:
            break
        canvas = small.astype(np.float32)
        fill_mask(canvas, resize_mask(mask, small.shape), mask_colour(number), opacity=OPACITY)
        drawn = canvas.astype(np.uint8)
        for target in targets:
            draw_border(drawn, resize_mask(target, small.shape), WHITE, thickness=1, shadow=True)
        tiles.append(np.vstack([drawn, _caption(f"{name}  {iou:.2f}", width)]))
    return np.hstack(tiles)


def _caption(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    strip = Image.new("RGB", (width, CAPTION_PX), "black")
    ImageDraw.Draw(strip).text((4, 3), text, fill="white", font=ImageFont.load_default(12))
    return np.asarray(strip)
