"""Loss of the proposer: CenterNet's focal loss on centre heatmaps, TTFNet's weighted GIoU loss on boxes (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sam_train.model.proposer import BoxMaps, decode_boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxTargets:
    """Targets of one image for S object sizes on a grid h w."""

    heatmap: Float[Tensor, "S h w"]
    """Target of the centre heatmap: 1 in the cell of an object's centre, decreasing around it."""
    box_index: Int[Tensor, "S h w"]
    """Index of the object whose box a cell predicts, -1 for none."""
    weight: Float[Tensor, "S h w"]
    """Weight of a cell's box in the loss; the weights of an object sum to 1."""


class BoxLoss:
    """Focal loss on centres and weighted GIoU loss on boxes, each a sum over the objects of an image.

    spread: extent of an object's peak in the heatmap, as a share of the box's sides; 0.54 (TTFNet, alpha).
    box_weight: weight of the GIoU loss relative to the focal loss, 5 (TTFNet).
    focal_alpha, focal_beta: exponents that down-weight easy cells and cells near a centre, 2 and 4 (CornerNet, section 3.2, and
        CenterNet).
    Raises ValueError unless 0 < spread <= 1.
    """

    def __init__(
        self, *, spread: float = 0.54, box_weight: float = 5.0, focal_alpha: float = 2.0, focal_beta: float = 4.0
    ) -> None:
        if not 0 < spread <= 1:
            raise ValueError(f"spread must be in (0, 1], got {spread}")
        self.spread, self.box_weight, self.focal_alpha, self.focal_beta = spread, box_weight, focal_alpha, focal_beta

    def __call__(
        self, maps: BoxMaps, index: int, boxes_xyxy: Float[Tensor, "N 4"], sizes: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return focal loss and weighted box loss of image `index`.

        boxes_xyxy: N ground-truth boxes, in cells. sizes: object size of each box, 0 to S - 1.
        """
        logits = maps.center_logits[index].float()
        targets = self.targets(boxes_xyxy, sizes, logits.shape)
        size, y, x = (targets.box_index >= 0).nonzero(as_tuple=True)
        predicted = decode_boxes(maps.log_distances[index].float())[size, :, y, x]
        giou = generalized_iou(predicted, boxes_xyxy[targets.box_index[size, y, x]])
        return self.focal(logits, targets.heatmap), self.box_weight * ((1 - giou) * targets.weight[size, y, x]).sum()

    def focal(self, logits: Float[Tensor, "S h w"], heatmap: Float[Tensor, "S h w"]) -> Float[Tensor, ""]:
        """Return the penalty-reduced focal loss (CornerNet), summed over the cells."""
        probability = logits.sigmoid()
        positive = -F.logsigmoid(logits) * (1 - probability) ** self.focal_alpha
        negative = -F.logsigmoid(-logits) * probability**self.focal_alpha * (1 - heatmap) ** self.focal_beta
        return torch.where(heatmap == 1, positive, negative).sum()

    @torch.no_grad()
    def targets(self, boxes_xyxy: Float[Tensor, "N 4"], sizes: Int[Tensor, " N"], shape: torch.Size) -> BoxTargets:
        """Return the targets of the cells S x h x w (`shape`) for the N boxes of an image, given in cells."""
        num_sizes, height, width = shape
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        last_cell = torch.tensor([width - 1, height - 1], device=sides.device)
        centers = torch.minimum(((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).floor().clamp(min=0), last_cell)
        radii = self.spread * sides / 2
        sigmas = (2 * radii + 1) / 6
        positions = torch.arange(max(height, width), device=sides.device)
        distances = (positions - centers[:, :, None]).abs()  # N x 2 x positions
        gaussians = torch.exp(-(distances**2) / (2 * sigmas[:, :, None] ** 2)) * (distances <= radii.clamp(min=0.5)[:, :, None])
        peaks = gaussians[:, 1, :height, None] * gaussians[:, 0, None, :width]
        heatmap = peaks.new_zeros(shape)
        box_index = torch.full(tuple(shape), -1, device=sides.device)
        for size in range(num_sizes):
            of_size = (sizes == size).nonzero()[:, 0]
            if len(of_size):
                heatmap[size], highest = peaks[of_size].max(0)
                box_index[size] = torch.where(heatmap[size] > 0, of_size[highest], -1)
        assigned = box_index >= 0
        sums = peaks.new_zeros(len(boxes_xyxy)).scatter_add(0, box_index[assigned], heatmap[assigned])
        weight = torch.zeros_like(heatmap)
        weight[assigned] = heatmap[assigned] / sums[box_index[assigned]]
        return BoxTargets(heatmap=heatmap, box_index=box_index, weight=weight)


def generalized_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """Return the GIoU of pairs of XYXY boxes (Rezatofighi et al. 2019): IoU minus the uncovered share of the enclosing box."""
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (a, b)]
    intersection = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    enclosing = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1).clamp(min=1e-6)
    union = (areas[0] + areas[1] - intersection).clamp(min=1e-6)
    return intersection / union - (enclosing - union) / enclosing
