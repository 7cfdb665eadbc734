"""Focal loss, dice loss and IoU of mask logits in one pass over the pixels, and their gradient in a second one.

With plain formulas, autograd stores ten tensors of the size of the logits, and a CPU spends most of the loss on allocating
memory for them. Here only logits and targets are stored, and intermediate tensors are computed for a chunk of prompts that
fits the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sam_train.model.chunk_sizes import chunk_sizes_for


class MaskLossTerms(NamedTuple):
    """Losses and IoU of N prompts with M candidate masks each. `iou` carries no gradient."""

    focal: Float[Tensor, "N M"]
    dice: Float[Tensor, "N M"]
    iou: Float[Tensor, "N M"]


def fused_mask_loss(
    logits: Float[Tensor, "N M p"], targets: Float[Tensor, "N p"], *, alpha: float, gamma: float, normalize: str = "pixels"
) -> MaskLossTerms:
    """Return focal loss, dice loss and IoU of candidate masks of p pixels; `targets` are 0 or 1.

    focal: alpha_t (1 - p_t)^gamma CE (Lin et al. 2017). `normalize` "pixels" takes its mean over the pixels, "weights" divides
        its sum by the sum of the weights (1 - p_t)^gamma, at least 1, through which no gradient flows.
    dice: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1); the 1 is SAM 2's smoothing.
    iou: IoU of the masks where logits exceed 0; 0 if both are empty.
    """
    return MaskLossTerms(*_FusedMaskLoss.apply(logits, targets, alpha, gamma, normalize == "weights"))


class _FusedMaskLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, alpha: float, gamma: float, by_weights: bool) -> tuple[Tensor, ...]:
        focal, focal_weights, soft_area, soft_overlap, area, overlap = (logits.new_empty(logits.shape[:2]) for _ in range(6))
        for rows in _chunks(logits):
            x, t = logits[rows], targets[rows, None]
            sign = 1 - 2 * t
            signed = x * sign  # -log p_t = softplus(signed), 1 - p_t = sigmoid(signed)
            wrong = signed.sigmoid()
            weight = wrong.pow(gamma)
            focal_weights[rows] = weight.sum(-1)
            focal[rows] = weight.mul_(F.softplus(signed)).mul_(_alpha_t(t, alpha)).sum(-1)
            probability = wrong.mul_(sign).add_(t)
            soft_area[rows] = probability.sum(-1)
            soft_overlap[rows] = probability.mul_(t).sum(-1)
            mask = torch.gt(x, 0, out=signed)
            area[rows] = mask.sum(-1)
            overlap[rows] = mask.mul_(t).sum(-1)
        target_area = targets.sum(-1)[:, None]
        norm = focal_weights.clamp_(min=1) if by_weights else torch.full_like(focal_weights, logits.shape[-1])
        dice_denominator = soft_area + target_area + 1
        iou = overlap / (area + target_area - overlap).clamp_(min=1)
        ctx.save_for_backward(logits, targets, norm, soft_overlap, dice_denominator)
        ctx.alpha, ctx.gamma = alpha, gamma
        ctx.mark_non_differentiable(iou)
        return focal / norm, 1 - (2 * soft_overlap + 1) / dice_denominator, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_focal: Tensor, grad_dice: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, norm, soft_overlap, dice_denominator = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        grad_focal = grad_focal / norm
        grad_overlap = grad_dice * (-2 / dice_denominator)
        grad_area = grad_dice * ((2 * soft_overlap + 1) / dice_denominator**2)
        for rows in _chunks(logits):
            x, t = logits[rows], targets[rows, None]
            sign = 1 - 2 * t
            signed = x * sign
            wrong = signed.sigmoid()
            right = 1 - wrong
            # d/ds (1 - p_t)^gamma CE = (1 - p_t)^gamma (gamma p_t CE + 1 - p_t), with s the signed logit
            slope = F.softplus(signed).mul_(right).mul_(ctx.gamma).add_(wrong).mul_(wrong.pow(ctx.gamma))
            slope.mul_(_alpha_t(t, ctx.alpha).mul_(sign)).mul_(grad_focal[rows, :, None])
            grad_probability = torch.addcmul(grad_area[rows, :, None], grad_overlap[rows, :, None], t)
            gradient[rows] = slope.addcmul_(wrong.mul_(right), grad_probability)
        return gradient, None, None, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of prompts whose intermediate tensors fit the cache."""
    num = max(1, chunk_sizes_for(logits.device).mask_loss // (logits.shape[1] * logits.shape[2]))
    yield from (slice(i, i + num) for i in range(0, len(logits), num))


def _alpha_t(targets: Tensor, alpha: float) -> Tensor:
    """Return alpha where the target is 1, and 1 - alpha where it is 0."""
    return targets * (2 * alpha - 1) + (1 - alpha)
