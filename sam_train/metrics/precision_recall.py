"""Precision and recall of predicted boxes or masks at one IoU threshold, accumulated over images and processes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class PrecisionRecall(Metric):
    """Precision and recall of predictions that are matched one-to-one to ground-truth objects at an IoU of at least `min_iou`."""

    counts: Tensor

    def __init__(self, min_iou: float = 0.5) -> None:
        super().__init__()
        self.min_iou = min_iou
        self.add_state("counts", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ious: Float[Tensor, "N M"]) -> None:
        """Add an image: the IoU of each of N predictions, best first, with each of M ground-truth objects."""
        matched = count_matches(ious, self.min_iou)
        self.counts += torch.tensor([matched, *ious.shape], dtype=torch.float64, device=self.counts.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return precision and recall; 0 if there is no prediction or no object."""
        matched, num_predictions, num_objects = self.counts.float().unbind()
        return matched / num_predictions.clamp(min=1), matched / num_objects.clamp(min=1)


def count_matches(ious: Float[Tensor, "N M"], min_iou: float) -> int:
    """Count greedy matches: each of N predictions in turn takes the unmatched object of highest IoU, if at least `min_iou`."""
    if not ious.numel():
        return 0
    unmatched, count = ious.clone().cpu(), 0
    for row in range(len(unmatched)):
        best = int(unmatched[row].argmax())
        if unmatched[row, best] >= min_iou:
            count += 1
            unmatched[:, best] = -1
    return count


def pairwise_box_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Return the IoU of each box of `a` with each box of `b`, XYXY."""
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (a, b)]
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    intersections = sides.clamp(min=0).prod(2)
    return intersections / (areas[0][:, None] + areas[1] - intersections).clamp(min=1e-6)
