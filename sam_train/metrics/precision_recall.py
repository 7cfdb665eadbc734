"""Precision and recall of a set of boxes or masks, in counts that add up over images and processes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class PrecisionRecall(Metric):
    """What is found, and what is there, matched one to one at a least IoU."""

    counts: Tensor

    def __init__(self, min_iou: float = 0.5) -> None:
        super().__init__()
        self.min_iou = min_iou
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ious: Float[Tensor, "N M"]) -> None:
        """IoU of each of N found in an image, best first, with each of M that are there."""
        matched = count_matches(ious, self.min_iou)
        self.counts += torch.tensor([matched, *ious.shape], dtype=torch.float64, device=self.counts.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Precision and recall; zeros where nothing was found, or is there."""
        matched, found, there = self.counts.float().unbind()
        return matched / found.clamp(min=1), matched / there.clamp(min=1)


def count_matches(ious: Float[Tensor, "N M"], min_iou: float) -> int:
    """Pairs, greedily: each of N in turn takes the best that is free, if that is at least `min_iou`."""
    if not ious.numel():
        return 0
    free, number = ious.clone().cpu(), 0
    for row in range(len(free)):
        best = int(free[row].argmax())
        if free[row, best] >= min_iou:
            number += 1
            free[:, best] = -1
    return number


def pairwise_box_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """IoU of each box of `a` with each of `b`, XYXY."""
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (a, b)]
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    both = sides.clamp(min=0).prod(2)
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=1e-6)
