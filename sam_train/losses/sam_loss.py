"""The loss of one round (paper, section A): 20 focal + 1 dice on the best candidate, and the IoU head's MSE."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses.fused_mask_loss import fused_mask_loss
from sam_train.structures import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """Means over the N prompts of a round; `total` is weighted and carries the gradient."""

    total: Float[Tensor, ""]
    focal: Float[Tensor, ""]
    dice: Float[Tensor, ""]
    iou: Float[Tensor, ""]
    true_iou: Float[Tensor, " N"]
    """IoU of the backpropagated candidate, detached."""
    predicted_iou: Float[Tensor, " N"]
    """The model's own estimate of it, detached."""


class SamLoss:
    """Per candidate losses, minimum over the candidates, mean over the prompts.

    focal_weight, dice_weight, iou_weight: 20, 1, 1 (paper).
    focal_alpha, focal_gamma: 0.25 and 2, which the paper leaves open, from the focal-loss paper and SAM 2's code.
    focal_normalize: "pixels" is the mean over all pixels; "weights" divides by the sum of the weights (1 - p_t)^gamma, as
        RITM's normalized focal loss does. The paper does not say. Over all pixels, a small object weighs so little that a
        model that starts from nothing first learns to answer "nothing" for thousands of steps; over the weights it
        starts at once, and wants a focal_weight below 1.
    loser_weight: share of the mask loss that is the mean over all candidates instead of the lowest. 0 (paper): only the
        lowest learns. A model that starts from nothing then often learns with one of its three candidates alone.
    supervise_all_ious: the IoU head learns from all candidates (SAM 2's recipe) or from the best one only (SAM 2's
        code says SAM 1 did so).
    iou_loss: "mse" (paper) or "l1" (SAM 2).
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
            raise ValueError(f"loser_weight must be in [0, 1), got {all_candidates_weight}")
        self.all_candidates_weight = all_candidates_weight
        self.supervise_all_ious = supervise_all_ious
        self.iou_error = F.mse_loss if iou_loss == "mse" else F.l1_loss

    def __call__(self, prediction: Prediction, targets: Float[Tensor, "N h w"]) -> LossTerms:
        """`targets` in {0, 1} at the resolution of the logits."""
        focal, dice, ious = fused_mask_loss(
            prediction.mask_logits.flatten(2).float(),
            targets.flatten(1).float(),
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            normalize=self.focal_normalize,
        )
        mask_loss = self.focal_weight * focal + self.dice_weight * dice
        best = mask_loss.argmin(1, keepdim=True)
        taught = mask_loss.gather(1, best)[:, 0].lerp(mask_loss.mean(1), self.all_candidates_weight)
        iou = self.iou_error(prediction.iou_scores.float(), ious, reduction="none")
        best_iou = iou.mean(1) if self.supervise_all_ious else iou.gather(1, best)[:, 0]
        return LossTerms(
            total=taught.mean() + self.iou_weight * best_iou.mean(),
            focal=focal.gather(1, best).mean().detach(),
            dice=dice.gather(1, best).mean().detach(),
            iou=best_iou.mean().detach(),
            true_iou=ious.gather(1, best)[:, 0],
            predicted_iou=prediction.iou_scores.detach().float().gather(1, best)[:, 0],
        )
