"""A correction of the IoU scores that is computed from the predicted masks, for `MaskDecoder` with `iou_from_masks`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sam_train.model.layers import MLP

NUM_STATISTICS = 3
HIDDEN_DIM = 64

LOGIT_SCALE = 10.0
"""The mean logit and the log of the area are divided by it, so that all statistics are of the order of 1."""


class MaskStatisticsHead(nn.Module):
    """A small network from the statistics of one mask to a value that is added to its IoU score.

    The IoU token alone has to learn from scratch how good a mask is; a mask itself shows it: a model that is unsure has logits
    near zero. No gradient flows from the score into the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(NUM_STATISTICS, HIDDEN_DIM, 1, 2)
        self.mlp.init_last_layer(gain=0.02, bias=0.0)

    def forward(self, mask_logits: Float[Tensor, "N M H W"]) -> Float[Tensor, "N M"]:
        """Return the value for each mask."""
        return self.mlp(mask_statistics(mask_logits.detach()))[..., 0]


def mask_statistics(mask_logits: Float[Tensor, "N M H W"]) -> Float[Tensor, "N M 3"]:
    """Return three statistics of each mask, means over the frame in which a pixel weighs as much as its probability p.

    They are the mean probability, sum(p^2) / sum(p); the mean logit, divided by 10; and the natural logarithm of the expected
    share of the frame, sum(p) / (H W), divided by 10. One pixel is added to each sum(p): an empty mask has finite values.
    Nothing is cut at a threshold, so that equal masks from two runtimes have equal statistics.
    """
    logits = mask_logits.flatten(2).float()
    probabilities = logits.sigmoid()
    area = probabilities.sum(2) + 1
    mean_probability = probabilities.square().sum(2) / area
    mean_logit = (logits * probabilities).sum(2) / area / LOGIT_SCALE
    log_share = (area / logits.shape[2]).log() / LOGIT_SCALE
    return torch.stack([mean_probability, mean_logit, log_share], 2).to(mask_logits.dtype)
