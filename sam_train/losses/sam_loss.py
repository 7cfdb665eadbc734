"""The loss of one prompting round (paper, section A): 20 focal + 1 dice on the best candidate mask, and the IoU head's MSE."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses.fused_mask_loss import fused_mask_loss
from sam_train.structures import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """Losses of a round with N prompts. Only `total` carries a gradient."""

    total: Float[Tensor, ""]
    """Weighted sum of the terms, mean over the prompts."""
    focal: Float[Tensor, ""]
    """Unweighted focal loss of the best candidate, mean over the prompts."""
    dice: Float[Tensor, ""]
    """Unweighted dice loss of the best candidate, mean over the prompts."""
    iou: Float[Tensor, ""]
    """Unweighted loss of the IoU head, mean over the prompts."""
    true_iou: Float[Tensor, " N"]
    """IoU of the best candidate with the target."""
    predicted_iou: Float[Tensor, " N"]
    """IoU of the best candidate as the model estimates it."""


class SamLoss:
    """Mask and IoU losses of each candidate; minimum over the candidates, mean over the prompts.

    focal_weight, dice_weight, iou_weight: weights of the terms, 20, 1, 1 (paper).
    focal_alpha, focal_gamma: 0.25 and 2, from the focal-loss paper and SAM 2's code; the paper does not state them.
    focal_normalize: "pixels" takes the mean over all pixels; "weights" divides by the sum of the weights (1 - p_t)^gamma, as
        RITM's normalized focal loss does. The paper does not state it. With "pixels", a small object weighs so little that a
        model trained from scratch predicts empty masks for its first thousands of steps; with "weights" it learns from the
        start, and needs a focal_weight below 1.
    all_candidates_weight: share of the mask loss that is the mean over all candidates instead of the minimum. 0 (paper) trains
        only the best candidate; a model trained from scratch then often uses only one of its three candidates.
    supervise_all_ious: train the IoU head on all candidates (SAM 2's recipe) instead of only the best one (SAM 1, according to
        SAM 2's code).
    iou_loss: "mse" (paper) or "l1" (SAM 2).
    Raises ValueError for values outside these choices, or all_candidates_weight outside [0, 1).
    """

    def __init__(
        self,
        *,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        focal_normalize: str = "pixels",
        all_candidates_weight: float = 0.0,
        supervise_all_ious: bool = False,
        iou_loss: str = "mse",
    ) -> None:
        if iou_loss not in ("mse", "l1"):
            raise ValueError(f"iou_loss must be 'mse' or 'l1', got {iou_loss!r}")
        self.focal_weight, self.dice_weight, self.iou_weight = focal_weight, dice_weight, iou_weight
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        if focal_normalize not in ("pixels", "weights"):
            raise ValueError(f"focal_normalize must be 'pixels' or 'weights', got {focal_normalize!r}")
        self.focal_normalize = focal_normalize
        if not 0 <= all_candidates_weight < 1:
            raise ValueError(f"all_candidates_weight must be in [0, 1), got {all_candidates_weight}")
        self.all_candidates_weight = all_candidates_weight
        self.supervise_all_ious = supervise_all_ious
        self.iou_error = F.mse_loss if iou_loss == "mse" else F.l1_loss

    def __call__(self, prediction: Prediction, targets: Float[Tensor, "N h w"]) -> LossTerms:
        """Return the losses of a prediction. `targets` are 0 or 1, at the resolution of the logits."""
        focal, dice, ious = fused_mask_loss(
            prediction.mask_logits.flatten(2).float(),
            targets.flatten(1).float(),
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            normalize=self.focal_normalize,
        )
        mask_loss = self.focal_weight * focal + self.dice_weight * dice
        best = mask_loss.argmin(1, keepdim=True)
        trained_loss = mask_loss.gather(1, best)[:, 0].lerp(mask_loss.mean(1), self.all_candidates_weight)
        iou = self.iou_error(prediction.iou_scores.float(), ious, reduction="none")
        iou_loss = iou.mean(1) if self.supervise_all_ious else iou.gather(1, best)[:, 0]
        return LossTerms(
            total=trained_loss.mean() + self.iou_weight * iou_loss.mean(),
            focal=focal.gather(1, best).mean().detach(),
            dice=dice.gather(1, best).mean().detach(),
            iou=iou_loss.mean().detach(),
            true_iou=ious.gather(1, best)[:, 0],
            predicted_iou=prediction.iou_scores.detach().float().gather(1, best)[:, 0],
        )
