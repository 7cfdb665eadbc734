"""What a proposer's boxes cost: CenterNet's focal loss on middles, TTFNet's weighted GIoU on boxes (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sam_train.model.proposer import BoxMaps, decode_boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxTargets:
    """Of one image, S sizes on a grid h w."""

    heat: Float[Tensor, "S h w"]
    """1 in the cell with an object's middle, less around it."""
    owner: Int[Tensor, "S h w"]
    """The object whose box a cell gives, -1 for none."""
    weight: Float[Tensor, "S h w"]
    """Of a cell's box; the weights of an object add up to 1."""


class BoxLoss:
    """Sum over the objects of an image.

    spread: share of a box's sides over which its heat falls to nothing, 0.54 (TTFNet).
    box_weight: of the GIoU loss beside the focal loss, 5 (TTFNet).
    focal_alpha, focal_beta: 2 and 4 (CornerNet, section 3.2, and CenterNet): how much less easy cells count, and cells near
        a middle.
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
        """Focal and weighted box loss of image `index`, whose N true boxes are given in cells."""
        logits = maps.center_logits[index].float()
        targets = self.targets(boxes_xyxy, sizes, logits.shape)
        size, y, x = (targets.owner >= 0).nonzero(as_tuple=True)
        found = decode_boxes(maps.log_distances[index].float())[size, :, y, x]
        giou = generalized_iou(found, boxes_xyxy[targets.owner[size, y, x]])
        return self.focal(logits, targets.heat), self.box_weight * ((1 - giou) * targets.weight[size, y, x]).sum()

    def focal(self, logits: Float[Tensor, "S h w"], heat: Float[Tensor, "S h w"]) -> Float[Tensor, ""]:
        """Penalty-reduced focal loss, summed over the cells."""
        chance = logits.sigmoid()
        hit = -F.logsigmoid(logits) * (1 - chance) ** self.focal_alpha
        miss = -F.logsigmoid(-logits) * chance**self.focal_alpha * (1 - heat) ** self.focal_beta
        return torch.where(heat == 1, hit, miss).sum()

    @torch.no_grad()
    def targets(self, boxes_xyxy: Float[Tensor, "N 4"], sizes: Int[Tensor, " N"], shape: torch.Size) -> BoxTargets:
        """What an image's N boxes (in cells) say of each cell of S x h x w."""
        num_sizes, height, width = shape
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        most = torch.tensor([width - 1, height - 1], device=sides.device)
        middles = torch.minimum(((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).floor().clamp(min=0), most)
        reach = self.spread * sides / 2
        sigmas = (2 * reach + 1) / 6
        places = torch.arange(max(height, width), device=sides.device)
        off = (places - middles[:, :, None]).abs()  # N x 2 x places
        falls = torch.exp(-(off**2) / (2 * sigmas[:, :, None] ** 2)) * (off <= reach.clamp(min=0.5)[:, :, None])
        heats = falls[:, 1, :height, None] * falls[:, 0, None, :width]
        heat = heats.new_zeros(shape)
        owner = torch.full(tuple(shape), -1, device=sides.device)
        for size in range(num_sizes):
            of_size = (sizes == size).nonzero()[:, 0]
            if len(of_size):
                heat[size], first = heats[of_size].max(0)
                owner[size] = torch.where(heat[size] > 0, of_size[first], -1)
        owned = owner >= 0
        sums = heats.new_zeros(len(boxes_xyxy)).scatter_add(0, owner[owned], heat[owned])
        weight = torch.zeros_like(heat)
        weight[owned] = heat[owned] / sums[owner[owned]]
        return BoxTargets(heat=heat, owner=owner, weight=weight)


def generalized_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """GIoU of pairs of boxes, XYXY (Rezatofighi et al. 2019): IoU less the share of the hull that neither covers."""
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (a, b)]
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1).clamp(min=1e-6)
    either = (areas[0] + areas[1] - both).clamp(min=1e-6)
    return both / either - (hull - either) / hull
