"""The three frames and the only place where a coordinate meets a scale.

*Image frame*: original pixels. *Model frame*: longest side resized to `size`, padded right and bottom to a
square. *Crop frame*: a window of the image, its origin at the window's top left corner. A point (x, y) lies
in continuous coordinates of released SAM: pixel (column, row) is given as its integer index; the prompt
encoder adds the half pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Resize:
    """Image frame to model frame and back: longest side to `size` (segment_anything/utils/transforms.py)."""

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"an image of {self.height} x {self.width} cannot be resized to {self.size}: sides must be positive")

    @property
    def scaled_hw(self) -> tuple[int, int]:
        """Height and width of the picture inside the model frame, before padding."""
        scale = self.size / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def points_to_model(self, points_xy: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
        """Scale by the exact new/old ratio of each side."""
        height, width = self.scaled_hw
        ratio_xy = [width / self.width, height / self.height]
        return points_xy * torch.tensor(ratio_xy, dtype=points_xy.dtype, device=points_xy.device)

    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M height width"]:
        """Bilinear to the model frame, padding cut off, bilinear to the image (Sam.postprocess_masks)."""
        full = F.interpolate(mask_logits, (self.size, self.size), mode="bilinear", align_corners=False)
        height, width = self.scaled_hw
        cut = full[..., :height, :width]
        if (height, width) == (self.height, self.width):
            return cut
        return F.interpolate(cut, (self.height, self.width), mode="bilinear", align_corners=False)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """HWC uint8 to height x width. Area averaging when shrinking (no aliasing), bilinear when growing."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    shrink = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """N x H x W bool to N x height x width: a pixel is set when more than half of its area was."""
    import cv2

    if masks.shape[1:] == (height, width):
        return masks
    # Compared by area: the short side of a long thin image may stay as it is while the long one shrinks.
    shrink = height * width < masks.shape[1] * masks.shape[2]
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    resized = [cv2.resize(m.astype(np.float32), (width, height), interpolation=interpolation) for m in masks]
    return np.stack(resized) > 0.5 if resized else np.zeros((0, height, width), bool)


def pad_to_square(array: np.ndarray, size: int, value: int | np.ndarray = 0) -> np.ndarray:
    """Pad the first two axes of an HW or HWC array at the bottom and the right up to size x size."""
    padded = np.empty((size, size, *array.shape[2:]), array.dtype)
    padded[...] = value
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
