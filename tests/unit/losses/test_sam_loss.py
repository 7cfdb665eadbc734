"""Mask loss: perfect and empty predictions, half precision, which terms carry gradients (formulas: tests/parity)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam_train.losses import SamLoss
from sam_train.structures import Prediction

NORMALIZE = pytest.mark.parametrize("focal_normalize", ["pixels", "weights"])


def half_filled(num: int = 2) -> torch.Tensor:
    targets = torch.zeros(num, 4, 4)
    targets[:, :2] = 1
    return targets


@NORMALIZE
def test_a_perfect_prediction_has_zero_loss(focal_normalize: str) -> None:
    targets = half_filled()
    prediction = Prediction(mask_logits=(targets[:, None] - 0.5) * 80, iou_scores=torch.ones(2, 1))
    terms = SamLoss(focal_normalize=focal_normalize)(prediction, targets)
    for value in (terms.total, terms.focal, terms.dice, terms.iou):
        assert value.item() == pytest.approx(0, abs=1e-6)
    assert terms.true_iou.tolist() == [1, 1]


@NORMALIZE
def test_extreme_wrong_logits_give_a_finite_loss(focal_normalize: str) -> None:
    targets = half_filled()
    logits = ((0.5 - targets[:, None]) * 2e4).requires_grad_()
    terms = SamLoss(focal_normalize=focal_normalize)(Prediction(mask_logits=logits, iou_scores=torch.ones(2, 1)), targets)
    terms.total.backward()
    assert logits.grad is not None
    assert bool(terms.total.isfinite())
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[targets[:, None] == 1] < 0).all()), "more is wanted where the target is"
    assert terms.true_iou.tolist() == [0, 0]


def test_empty_target_and_empty_prediction() -> None:
    """0 / 0 counts as IoU 0, and dice is smooth there."""
    terms = SamLoss()(Prediction(mask_logits=torch.full((1, 1, 4, 4), -50.0), iou_scores=torch.zeros(1, 1)), torch.zeros(1, 4, 4))
    assert terms.true_iou.tolist() == [0]
    assert terms.total.item() == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_reduced_in_fp32() -> None:
    targets = half_filled()
    logits, scores = torch.randn(2, 3, 4, 4).bfloat16(), torch.rand(2, 3).bfloat16()
    half = SamLoss()(Prediction(mask_logits=logits, iou_scores=scores), targets)
    full = SamLoss()(Prediction(mask_logits=logits.float(), iou_scores=scores.float()), targets)
    assert half.total.dtype == torch.float32
    assert half.total.item() == full.total.item()


def test_only_the_total_carries_a_gradient() -> None:
    prediction = Prediction(
        mask_logits=torch.randn(2, 3, 4, 4, requires_grad=True), iou_scores=torch.rand(2, 3, requires_grad=True)
    )
    terms = SamLoss()(prediction, half_filled())
    assert terms.total.requires_grad
    assert not any(value.requires_grad for value in (terms.focal, terms.dice, terms.iou, terms.true_iou))


def test_the_iou_target_carries_no_gradient() -> None:
    """With only the IoU term, mask logits get no gradient."""
    prediction = Prediction(
        mask_logits=torch.randn(2, 3, 4, 4, requires_grad=True), iou_scores=torch.rand(2, 3, requires_grad=True)
    )
    SamLoss(focal_weight=0, dice_weight=0, supervise_all_ious=True)(prediction, half_filled()).total.backward()
    assert prediction.mask_logits.grad is not None
    assert prediction.iou_scores.grad is not None
    assert not prediction.mask_logits.grad.any()
    assert bool((prediction.iou_scores.grad != 0).all())


def test_a_large_focal_weight_changes_which_mask_is_best() -> None:
    """The minimum is over the weighted sum, not over either part."""
    targets = torch.zeros(1, 10, 10)
    targets[0, 0, 0] = 1
    timid = torch.full((1, 10, 10), -3.0)
    bold = torch.full((1, 10, 10), -3.0)
    bold[:, :2, :3] = 4.0
    prediction = Prediction(mask_logits=torch.stack([timid, bold], 1), iou_scores=torch.zeros(1, 2))
    ious = [SamLoss(focal_weight=w, dice_weight=1, iou_weight=0)(prediction, targets).true_iou.item() for w in (0.0, 1e4)]
    assert ious == [pytest.approx(1 / 6), 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iou_loss": "huber"}, "iou_loss must be 'mse' or 'l1', got 'huber'"),
        ({"focal_normalize": "masks"}, "focal_normalize must be 'pixels' or 'weights', got 'masks'"),
    ],
)
def test_rejects_invalid_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamLoss(**values)
