"""Tests edge cases of the prompt simulator: perfect predictions, empty regions, few rounds, invalid values.

Its statistics are tested in tests/parity.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sam_train.prompts import NextStep, PromptRound, PromptSimulator
from sam_train.prompts.sampling import noisy_boxes, sample_uniform_points
from sam_train.structures import PointLabel, Prompts

CLICK_ROUND = PromptRound(0, NextStep.ERROR_CLICK)


def square_targets(num: int) -> Tensor:
    targets = torch.zeros(num, 12, 16, dtype=torch.bool)
    targets[:, 3:9, 4:11] = True
    return targets


def correction_clicks(simulator: PromptSimulator, predictions: Tensor, targets: Tensor) -> tuple[list[list[float]], list[int]]:
    """Return the points and labels of the clicks that follow `predictions`."""
    generator = torch.Generator().manual_seed(0)
    n = len(targets)
    prompts = simulator.first_prompts(targets, torch.zeros(n, dtype=torch.long), generator)
    following = simulator.next_prompts(CLICK_ROUND, prompts, predictions, targets, torch.zeros(n, 1, 3, 4), generator)
    return following.points_xy[:, -1].tolist(), following.point_labels[:, -1].tolist()


@pytest.mark.parametrize(
    ("corrections", "empty", "next_steps"),
    [
        (0, 0, [NextStep.END]),
        (0, 1, [NextStep.MASK_ONLY, NextStep.END]),
        (0, 2, [NextStep.MASK_ONLY, NextStep.MASK_ONLY, NextStep.END]),
        (2, 0, [NextStep.ERROR_CLICK, NextStep.ERROR_CLICK, NextStep.END]),
        (2, 1, [NextStep.ERROR_CLICK, NextStep.ERROR_CLICK, NextStep.MASK_ONLY, NextStep.END]),
    ],
)
def test_rounds_of_few_corrections(corrections: int, empty: int, next_steps: list[NextStep]) -> None:
    simulator = PromptSimulator(num_corrections=corrections, num_mask_only_rounds=empty)
    assert [r.next_step for r in simulator.draw_rounds(torch.Generator())] == next_steps


@pytest.mark.parametrize("click", ["uniform", "center", "mixed"])
def test_perfect_prediction_gets_a_click_inside_the_target(click: str) -> None:
    targets = square_targets(20)
    points, labels = correction_clicks(PromptSimulator(click=click), targets.clone(), targets)
    assert labels == [PointLabel.FOREGROUND] * 20
    assert all(targets[0, int(y), int(x)] for x, y in points)


@pytest.mark.parametrize("click", ["uniform", "center", "mixed"])
def test_error_clicks_for_perfect_and_wrong_predictions_in_one_call(click: str) -> None:
    targets = square_targets(3)
    predictions = targets.clone()
    predictions[1] = False
    predictions[2, 0, 0] = True
    points, labels = correction_clicks(PromptSimulator(click=click), predictions, targets)
    assert labels == [1, 1, 0]
    assert all(targets[n, int(points[n][1]), int(points[n][0])] for n in (0, 1))
    assert points[2] == [0, 0]


def test_central_click_goes_to_the_deepest_error_region() -> None:
    targets, predictions = torch.zeros(2, 2, 20, 20, dtype=torch.bool)
    targets[:, 2:7, 2:7] = True  # 5 x 5, centre (4, 4)
    predictions[0, 10:19, 10:19] = True  # 9 x 9, centre (14, 14)
    predictions[1, 10:13, 10:13] = True  # 3 x 3
    points, labels = correction_clicks(PromptSimulator(click="center"), predictions, targets)
    assert points == [[14, 14], [4, 4]]
    assert labels == [PointLabel.BACKGROUND, PointLabel.FOREGROUND]


def test_central_first_clicks_are_deterministic() -> None:
    simulator = PromptSimulator(box_probability=0, click="center")
    index = torch.zeros(4, dtype=torch.long)
    one, other = (simulator.first_prompts(square_targets(4), index, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(one.points_xy, other.points_xy)
    assert one.point_labels.tolist() == [[PointLabel.FOREGROUND, PointLabel.PADDING]] * 4


def test_half_of_the_mixed_clicks_are_central() -> None:
    number = 400
    targets, index = square_targets(number), torch.zeros(number, dtype=torch.long)
    simulator = PromptSimulator(box_probability=0, click="mixed")
    central = PromptSimulator(box_probability=0, click="center").first_prompts(targets[:1], index[:1], torch.Generator())
    points = simulator.first_prompts(targets, index, torch.Generator().manual_seed(0)).points_xy[:, 0]
    is_central = (points == central.points_xy[0, 0]).all(1)
    assert 0.4 < is_central.float().mean() < 0.65
    assert len(points[~is_central].unique(dim=0)) > 20
    corrections = torch.tensor(correction_clicks(simulator, torch.zeros_like(targets), targets)[0])
    assert 0.4 < (corrections == central.points_xy[0, 0]).all(1).float().mean() < 0.65


def test_equal_generators_draw_equal_prompts() -> None:
    simulator, index = PromptSimulator(), torch.arange(30) % 3
    one, other, third = (
        simulator.first_prompts(square_targets(30), index, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one.points_xy, other.points_xy)
    assert torch.equal(one.point_labels, other.point_labels)
    assert not torch.equal(one.points_xy, third.points_xy)
    assert one.image_index is index


def test_box_probability_of_zero_and_one() -> None:
    index = torch.zeros(50, dtype=torch.long)
    for probability, labels in ((0.0, {1, -1}), (1.0, {2, 3})):
        prompts = PromptSimulator(box_probability=probability).first_prompts(
            square_targets(50), index, torch.Generator().manual_seed(0)
        )
        assert set(prompts.point_labels.flatten().tolist()) == labels


def test_boxes_without_noise_are_exact() -> None:
    boxes = noisy_boxes(square_targets(2), std=0.0, max_px=20, rng=torch.Generator())
    assert boxes.tolist() == [[4, 3, 10, 8]] * 2
    assert square_targets(1)[0, 3, 4]
    assert square_targets(1)[0, 8, 10]


def test_last_and_mask_only_rounds_add_no_point() -> None:
    prompts = Prompts.from_boxes(torch.zeros(1, dtype=torch.long), torch.tensor([[1.0, 1, 5, 5]]))
    arguments: tuple[Any, ...] = (prompts, square_targets(1), square_targets(1), torch.zeros(1, 1, 3, 4), torch.Generator())
    simulator = PromptSimulator()
    assert simulator.next_prompts(PromptRound(3, NextStep.END), *arguments) is prompts
    mask_only = simulator.next_prompts(PromptRound(3, NextStep.MASK_ONLY), *arguments)
    assert mask_only.points_xy is prompts.points_xy
    assert mask_only.mask_logits is arguments[3]


def test_rejects_an_empty_region() -> None:
    region = square_targets(3)
    region[1] = False
    with pytest.raises(ValueError, match="cannot draw a point from an empty region"):
        sample_uniform_points(region, torch.Generator())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"click": "centre"}, "click must be 'uniform', 'center' or 'mixed', got 'centre'"),
        ({"num_mask_only_rounds": 3}, "num_mask_only_rounds must be 0, 1 or 2, got 3"),
        ({"num_corrections": -1}, "num_corrections must be at least 0, got -1"),
    ],
)
def test_rejects_invalid_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSimulator(**values)
