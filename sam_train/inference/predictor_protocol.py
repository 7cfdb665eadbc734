"""The part of a predictor that annotators use, wherever its decoder runs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sam_train.structures import Prediction, Prompts


@runtime_checkable  # for isinstance checks in the tests
class PredictorLike(Protocol):
    """A predictor that holds its images: `Predictor`, or one whose decoder runs on another machine."""

    @property
    def device(self) -> torch.device:
        """Device of the predictions."""
        ...

    def predict_prompts(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        """Return logits on the decoder's grid and IoU scores, as `Predictor.predict_prompts`."""
        ...

    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Return masks at the resolution of the image, as `Predictor.masks_to_image`."""
        ...

    def stability_scores(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M"]:
        """Return stability scores at the resolution of the image, as `Predictor.stability_scores`."""
        ...
