"""The coordinate transform of released predictors, for callers of `Predictor.predict_torch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam_train.geometry import Resampling, Resize, resize_image


@dataclass(frozen=True, slots=True)
class ResizeLongestSide:
    """Resizes images, points and boxes so that the longest side becomes `target_length` pixels.

    Methods and arguments are those of segment_anything.utils.transforms.ResizeLongestSide; the arithmetic is that of
    `geometry.Resize`. original_size: height and width of the image. resampling: interpolation of `apply_image`.
    """

    target_length: int
    resampling: Resampling = "area"

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Resize an H x W x 3 uint8 image."""
        return resize_image(image, *self._resize(image.shape[:2]).scaled_hw, self.resampling)

    def apply_coords(self, coords: np.ndarray, original_size: Sequence[int]) -> np.ndarray:
        """Convert points (... x 2, x and y) from the image frame to the model frame, in float64."""
        points = torch.from_numpy(np.asarray(coords, np.float64))
        return self._resize(original_size).points_to_model(points).numpy()

    def apply_boxes(self, boxes: np.ndarray, original_size: Sequence[int]) -> np.ndarray:
        """Convert boxes (N x 4, XYXY) from the image frame to the model frame, in float64."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Tensor, original_size: Sequence[int]) -> Tensor:
        """Convert points (... x 2, x and y) from the image frame to the model frame, in float32."""
        return self._resize(original_size).points_to_model(coords.float())

    def apply_boxes_torch(self, boxes: Tensor, original_size: Sequence[int]) -> Tensor:
        """Convert boxes (N x 4, XYXY) from the image frame to the model frame, in float32."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def _resize(self, original_size: Sequence[int]) -> Resize:
        height, width = original_size
        return Resize(int(height), int(width), self.target_length)
