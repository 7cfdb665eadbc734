"""The mean is over masks, not over batches, and zero before any mask."""

from __future__ import annotations

import torch

from sam_train.metrics import ClickIoU


def test_mean_over_masks_of_unequal_batches() -> None:
    metric = ClickIoU(2)
    metric.update(torch.tensor([[1.0, 0.5]]))
    metric.update(torch.tensor([[0.0, 0.5], [0.0, 1.0], [1.0, 1.0]]))
    assert metric.compute().tolist() == [0.5, 0.75]


def test_zero_before_and_after_reset() -> None:
    metric = ClickIoU(3)
    metric.update(torch.zeros(0, 3))
    assert metric.total.tolist() == [0, 0, 0]
    metric.update(torch.ones(4, 3))
    metric.reset()
    assert metric.count == 0
    assert metric.total.tolist() == [0, 0, 0]


def test_sums_of_many_small_numbers_do_not_drift() -> None:
    metric = ClickIoU(1)
    for _ in range(2000):
        metric.update(torch.full((1, 1), 0.1))
    assert abs(metric.compute().item() - 0.1) < 1e-7
