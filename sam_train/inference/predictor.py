"""`set_image` once, which is slow; `predict` often, which is fast. Prompts and masks in the image frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sam_train.geometry import Resize, pad_to_square, resize_image
from sam_train.model import Sam
from sam_train.structures import PointLabel, Prediction, Prompts


class Predictor:
    """Prompted segmentation of one image at a time with any number of prompts at once."""

    def __init__(self, model: Sam) -> None:
        self.model = model.eval()
        self._embeddings: Tensor | None = None
        self._resize: Resize | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lies; answers lie there too."""
        return self.model.pixel_mean.device

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encode an H x W x 3 uint8 RGB image. Raises ValueError for any other array."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an H x W x 3 uint8 RGB image, got shape {image.shape} of {image.dtype}")
        size = self.model.image_size
        self._resize = Resize(image.shape[0], image.shape[1], size)
        height, width = self._resize.scaled_hw
        frame = pad_to_square(resize_image(image, height, width), size)
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].to(self.device)
        self._embeddings = self.model.encode_images(pixels, torch.tensor([[height, width]], device=self.device))

    @torch.inference_mode()
    def predict(self, prompts: Prompts, *, multimask_output: bool) -> Prediction:
        """Logits on the decoder's grid and IoU scores for N prompts of the image that was set.

        `prompts.points_xy` are image-frame pixels, `prompts.image_index` is 0. Raises ValueError without an image.
        """
        if self._embeddings is None or self._resize is None:
            raise ValueError("no image: call set_image first")
        # The padding point has no place, so scaling it changes nothing.
        in_model_frame = replace(prompts, points_xy=self._resize.points_to_model(prompts.points_xy.float()))
        return self.model.decode(self._embeddings, in_model_frame, multimask_output=multimask_output)

    @torch.inference_mode()
    def logits_in_image(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M H W"]:
        """Logits at the resolution of the image; a mask is where they are above 0."""
        if self._resize is None:
            raise ValueError("no image: call set_image first")
        return self._resize.logits_to_image(mask_logits)

    def masks_in_image(self, mask_logits: Float[Tensor, "N M h w"]) -> Bool[Tensor, "N M H W"]:
        """Masks at the resolution of the image."""
        return self.logits_in_image(mask_logits) > 0


def clicks(points_xy: Float[Tensor, "N 2"]) -> Prompts:
    """One foreground click each, on the image that was set."""
    index = torch.zeros(len(points_xy), dtype=torch.long, device=points_xy.device)
    labels = torch.full((len(points_xy), 1), PointLabel.FOREGROUND, device=points_xy.device)
    return Prompts.from_points(index, points_xy[:, None], labels)
