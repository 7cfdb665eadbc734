"""Coordinate frames, and all conversions between them.

*Image frame*: original pixels. *Model frame*: longest side resized to `size`, padded right and bottom to a
square. *Crop frame*: a window of the image, its origin at the window's top left corner. Points (x, y) follow
released SAM: pixel (column, row) is given by its integer indices, and the prompt encoder adds the half pixel.
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

MAX_CHUNK_PIXELS = 1 << 24
"""Number of pixels that Pillow resizes in one call: it copies its input, at four bytes a pixel."""


@dataclass(frozen=True, slots=True)
class InterpolationTaps:
    """Interpolation of n image pixels along one axis from a coarser grid: a weighted mean of three adjacent grid cells each."""

    first: np.ndarray
    """n, int64, ascending: index of the first of the three cells. Indices outside the grid stand for its nearest cell."""
    weights: np.ndarray
    """n x 3, float64: weights of the three cells, of sum 1."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Mapping between the image frame of a height x width image and the model frame: the longest side becomes `size` pixels.

    Source: segment_anything/utils/transforms.py. Raises ValueError unless all sides are positive.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"an image of {self.height} x {self.width} cannot be resized to {self.size}: sides must be positive")

    @property
    def scaled_hw(self) -> tuple[int, int]:
        """Height and width of the image inside the model frame, before padding."""
        scale = self.size / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def points_to_model(self, points_xy: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
        """Convert points from the image frame to the model frame, by the exact ratio of each side."""
        height, width = self.scaled_hw
        ratio_xy = [width / self.width, height / self.height]
        return points_xy * torch.tensor(ratio_xy, dtype=points_xy.dtype, device=points_xy.device)

    def points_to_image(self, points_xy: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
        """Convert points from the model frame to the image frame, the inverse of `points_to_model`."""
        height, width = self.scaled_hw
        return points_xy * points_xy.new_tensor([self.width / width, self.height / height])

    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M height width"]:
        """Resize logits to the image: bilinear to the model frame, crop the padding, bilinear to the image frame.

        Source: `Sam.postprocess_masks` of segment_anything.
        """
        full = F.interpolate(mask_logits, (self.size, self.size), mode="bilinear", align_corners=False)
        height, width = self.scaled_hw
        cropped = full[..., :height, :width]
        if (height, width) == (self.height, self.width):
            return cropped
        return F.interpolate(cropped, (self.height, self.width), mode="bilinear", align_corners=False)

    def interpolation_taps(self, grid: int) -> tuple[InterpolationTaps, InterpolationTaps]:
        """Return the taps of rows and columns that compute `logits_to_image` in one separable step.

        grid: side of the logits. Raises ValueError if it exceeds that of the model frame: three taps would not suffice.
        """
        if grid > self.size:
            raise ValueError(f"logits on {grid} x {grid} are finer than the model frame of {self.size} x {self.size}")
        height, width = self.scaled_hw
        return self._axis_taps(grid, height, self.height), self._axis_taps(grid, width, self.width)

    def _axis_taps(self, grid: int, scaled: int, length: int) -> InterpolationTaps:
        # Grid to model frame: model pixel u lies between grid cells `left` and `left + 1`. Model frame (cropped to `scaled`)
        # to image: pixel n lies between model pixels u and u + 1, which together depend on three adjacent cells.
        left, right_weight = _linear_neighbors(grid, self.size)
        left, right_weight = left[:scaled], right_weight[:scaled]
        u, next_weight = _linear_neighbors(scaled, length)
        u, following = u.clip(0, scaled - 1), (u + 1).clip(0, scaled - 1)
        first, pixel = left[u], np.arange(length)
        weights = np.zeros((length, 3))
        for model_pixel, weight in ((u, 1 - next_weight), (following, next_weight)):
            weights[pixel, left[model_pixel] - first] += weight * (1 - right_weight[model_pixel])
            weights[pixel, left[model_pixel] - first + 1] += weight * right_weight[model_pixel]
        return InterpolationTaps(first, weights)


def _linear_neighbors(num_from: int, num_to: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the left source index and the weight of the right one when `num_from` samples are resized linearly to `num_to`.

    Indices may lie outside the source.
    """
    position = (np.arange(num_to) + 0.5) * (num_from / num_to) - 0.5
    left = np.floor(position).astype(np.int64)
    return left, position - left


def resize_image(image: np.ndarray, height: int, width: int, resampling: Resampling = "area") -> np.ndarray:
    """Resize an HWC uint8 image to height x width.

    resampling: "area" averages when shrinking (no aliasing) and is bilinear when enlarging; "bilinear" is that of Pillow, which
        low-pass filters when shrinking, as released SAM does (segment_anything/utils/transforms.py).
    """
    import cv2

    if image.shape[:2] == (height, width):
        return image
    if resampling == "bilinear":
        return _pillow_bilinear(image, height, width)
    shrink = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def _pillow_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize with Pillow; a large image first along x in chunks of rows, the order that Pillow itself uses, to save memory."""
    from PIL import Image

    def resized(part: np.ndarray, rows: int) -> np.ndarray:
        return np.asarray(Image.fromarray(part).resize((width, rows), Image.Resampling.BILINEAR))

    if image.shape[0] * image.shape[1] <= MAX_CHUNK_PIXELS:
        return resized(image, height)
    num_rows = max(1, MAX_CHUNK_PIXELS // image.shape[1])
    parts = [image[row : row + num_rows] for row in range(0, image.shape[0], num_rows)]
    return resized(np.concatenate([resized(part, len(part)) for part in parts]), height)


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize N x H x W bool masks to height x width: a pixel is set if more than half of its area was."""
    import cv2

    if masks.shape[1:] == (height, width):
        return masks
    # Compare areas: the short side of a long thin image may stay unchanged while the long one shrinks.
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
