"""Focal loss, dice loss and IoU of mask logits in one pass over the pixels, and their gradient in a second one.

Written as plain formulas, autograd keeps ten maps of the size of the logits, and a CPU spends most of a loss on fetching
fresh memory for them. Here only logits and targets are kept, and the maps live for a few prompts at a time, which a cache
holds.
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
    """Of N prompts with M candidates each. `iou` carries no gradient."""

    focal: Float[Tensor, "N M"]
    dice: Float[Tensor, "N M"]
    iou: Float[Tensor, "N M"]


def fused_mask_loss(
    logits: Float[Tensor, "N M p"], targets: Float[Tensor, "N p"], *, alpha: float, gamma: float, normalize: str = "pixels"
) -> MaskLossTerms:
    """What candidates over p pixels are worth; `targets` in {0, 1}.

    focal: alpha_t (1 - p_t)^gamma CE (Lin et al. 2017), its mean over the pixels ("pixels") or its sum over that of their
        weights (1 - p_t)^gamma, at least 1, which are no part of the gradient ("weights").
    dice: 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1); the 1 is SAM 2's smoothing.
    iou: of the logits above 0; 0 where both are empty.
    """
    return MaskLossTerms(*_FusedMaskLoss.apply(logits, targets, alpha, gamma, normalize == "weights"))


class _FusedMaskLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, alpha: float, gamma: float, by_weights: bool) -> tuple[Tensor, ...]:
        focal, hardness, answered, overlap, area, in_both = (logits.new_empty(logits.shape[:2]) for _ in range(6))
        for rows in _pieces(logits):
            x, t = logits[rows], targets[rows, None]
            sign = 1 - 2 * t
            signed = x * sign  # -log p_t = softplus(signed), 1 - p_t = sigmoid(signed)
            wrong = signed.sigmoid()
            weight = wrong.pow(gamma)
            hardness[rows] = weight.sum(-1)
            focal[rows] = weight.mul_(F.softplus(signed)).mul_(_alpha_of(t, alpha)).sum(-1)
            probability = wrong.mul_(sign).add_(t)
            answered[rows] = probability.sum(-1)
            overlap[rows] = probability.mul_(t).sum(-1)
            answer = torch.gt(x, 0, out=signed)
            area[rows] = answer.sum(-1)
            in_both[rows] = answer.mul_(t).sum(-1)
        wanted = targets.sum(-1)[:, None]
        norm = hardness.clamp_(min=1) if by_weights else torch.full_like(hardness, logits.shape[-1])
        both = answered + wanted + 1
        iou = in_both / (area + wanted - in_both).clamp_(min=1)
        ctx.save_for_backward(logits, targets, norm, overlap, both)
        ctx.alpha, ctx.gamma = alpha, gamma
        ctx.mark_non_differentiable(iou)
        return focal / norm, 1 - (2 * overlap + 1) / both, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_focal: Tensor, of_dice: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, norm, overlap, both = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        of_focal = of_focal / norm
        of_target, of_rest = of_dice * (-2 / both), of_dice * ((2 * overlap + 1) / both**2)
        for rows in _pieces(logits):
            x, t = logits[rows], targets[rows, None]
            sign = 1 - 2 * t
            signed = x * sign
            wrong = signed.sigmoid()
            right = 1 - wrong
            # d/ds (1 - p_t)^gamma CE = (1 - p_t)^gamma (gamma p_t CE + 1 - p_t), with s the signed logit
            slope = F.softplus(signed).mul_(right).mul_(ctx.gamma).add_(wrong).mul_(wrong.pow(ctx.gamma))
            slope.mul_(_alpha_of(t, ctx.alpha).mul_(sign)).mul_(of_focal[rows, :, None])
            of_probability = torch.addcmul(of_rest[rows, :, None], of_target[rows, :, None], t)
            gradient[rows] = slope.addcmul_(wrong.mul_(right), of_probability)
        return gradient, None, None, None, None


def _pieces(logits: Tensor) -> Iterator[slice]:
    """So many prompts at a time that their maps stay in the cache."""
    num = max(1, chunk_sizes_for(logits.device).mask_loss // (logits.shape[1] * logits.shape[2]))
    yield from (slice(i, i + num) for i in range(0, len(logits), num))


def _alpha_of(targets: Tensor, alpha: float) -> Tensor:
    """alpha where the target is, 1 - alpha where it is not."""
    return targets * (2 * alpha - 1) + (1 - alpha)
