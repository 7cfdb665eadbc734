"""The three frames and the only place where a coordinate meets a scale.

*Image frame*: original pixels. *Model frame*: longest side resized to `size`, padded right and bottom to a
square. *Crop frame*: a window of the image, its origin at the window's top left corner. A point (x, y) lies
in continuous coordinates of released SAM: pixel (column, row) is given as its integer index; the prompt
encoder adds the half pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Resampling = Literal["area", "bilinear"]

# Pixels that Pillow is handed at once: it copies what it is given, at four bytes a pixel.
MAX_CHUNK_PIXELS = 1 << 24


@dataclass(frozen=True, slots=True)
class InterpolationTaps:
    """An axis of an image on a coarser grid: each of n pixels is a mean of three neighbours."""

    first: np.ndarray
    """n, int64, rising: the first of the three. What lies beyond the grid stands for its nearest end."""
    weights: np.ndarray
    """n x 3, float64, of sum 1."""


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

    def points_to_image(self, points_xy: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
        """The way back from `points_to_model`."""
        height, width = self.scaled_hw
        return points_xy * points_xy.new_tensor([self.width / width, self.height / height])

    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M height width"]:
        """Bilinear to the model frame, padding cut off, bilinear to the image (Sam.postprocess_masks)."""
        full = F.interpolate(mask_logits, (self.size, self.size), mode="bilinear", align_corners=False)
        height, width = self.scaled_hw
        cut = full[..., :height, :width]
        if (height, width) == (self.height, self.width):
            return cut
        return F.interpolate(cut, (self.height, self.width), mode="bilinear", align_corners=False)

    def interpolation_taps(self, grid: int) -> tuple[InterpolationTaps, InterpolationTaps]:
        """Rows and columns of `logits_to_image` for logits on `grid` x `grid`: its two steps in one, an axis at a time.

        Raises ValueError for a grid finer than the model frame, where three neighbours would not do.
        """
        if grid > self.size:
            raise ValueError(f"logits on {grid} x {grid} are finer than the model frame of {self.size} x {self.size}")
        height, width = self.scaled_hw
        return self._axis_taps(grid, height, self.height), self._axis_taps(grid, width, self.width)

    def _axis_taps(self, grid: int, scaled: int, length: int) -> InterpolationTaps:
        # To the model frame: its pixel u lies between the grid's `left` and the next. From it, cut off at `scaled`: pixel n
        # lies between u and the next, and these two have three of the grid's between them.
        left, right_share = _between(grid, self.size)
        left, right_share = left[:scaled], right_share[:scaled]
        u, next_share = _between(scaled, length)
        u, following = u.clip(0, scaled - 1), (u + 1).clip(0, scaled - 1)
        first, pixel = left[u], np.arange(length)
        weights = np.zeros((length, 3))
        for at, share in ((u, 1 - next_share), (following, next_share)):
            weights[pixel, left[at] - first] += share * (1 - right_share[at])
            weights[pixel, left[at] - first + 1] += share * right_share[at]
        return InterpolationTaps(first, weights)


def _between(num_from: int, num_to: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `num_to` places on an axis of `num_from`: the place before it, and the share of the next. May reach outside."""
    place = (np.arange(num_to) + 0.5) * (num_from / num_to) - 0.5
    before = np.floor(place).astype(np.int64)
    return before, place - before


def resize_image(image: np.ndarray, height: int, width: int, resampling: Resampling = "area") -> np.ndarray:
    """HWC uint8 to height x width. "area" averages when shrinking (no aliasing) and is bilinear when growing.

    "bilinear" is Pillow's, which smoothes when shrinking: that of released SAM (segment_anything/utils/transforms.py).
    """
    import cv2

    if image.shape[:2] == (height, width):
        return image
    if resampling == "bilinear":
        return _pillow_bilinear(image, height, width)
    shrink = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def _pillow_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Of a large image, which shrinks, columns first, as Pillow does it by itself: not all rows need be there at once."""
    from PIL import Image

    def resized(part: np.ndarray, rows: int) -> np.ndarray:
        return np.asarray(Image.fromarray(part).resize((width, rows), Image.Resampling.BILINEAR))

    if image.shape[0] * image.shape[1] <= MAX_CHUNK_PIXELS:
        return resized(image, height)
    num_rows = max(1, MAX_CHUNK_PIXELS // image.shape[1])
    parts = [image[row : row + num_rows] for row in range(0, image.shape[0], num_rows)]
    return resized(np.concatenate([resized(part, len(part)) for part in parts]), height)


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
