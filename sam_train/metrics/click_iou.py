"""Mean IoU after 1, 2, 3 ... clicks, as a torchmetrics metric."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class ClickIoU(Metric):
    """Mean over masks of the IoU after each of `num_clicks` clicks; accumulated over processes."""

    total: Tensor
    count: Tensor

    def __init__(self, num_clicks: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_clicks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, ious: Float[Tensor, "N K"]) -> None:
        """Add the IoUs of N masks after each of K clicks."""
        self.total += ious.double().sum(0)
        self.count += len(ious)

    def compute(self) -> Float[Tensor, " K"]:
        """Return mIoU@1 ... mIoU@K; zeros if there is no mask."""
        return (self.total / self.count.clamp(min=1)).float()
