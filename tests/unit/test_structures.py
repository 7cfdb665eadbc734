from __future__ import annotations

import dataclasses

import pytest
import torch
from jaxtyping import TypeCheckError

from sam_train.structures import Batch, PointLabel, Prediction, Prompts


def clicks(num_prompts: int = 3, num_points: int = 2) -> Prompts:
    return Prompts.from_points(
        torch.arange(num_prompts),
        torch.rand(num_prompts, num_points, 2),
        torch.ones(num_prompts, num_points, dtype=torch.long),
    )


def test_labels_are_the_released_numbers() -> None:
    assert [int(label) for label in PointLabel] == [-1, 0, 1, 2, 3]


def test_from_points_adds_one_padding_point() -> None:
    points = torch.rand(3, 2, 2)
    labels = torch.tensor([[1, 0], [1, 1], [0, 0]])
    prompts = Prompts.from_points(torch.tensor([0, 0, 1]), points, labels)
    assert torch.equal(prompts.points_xy[:, :2], points)
    assert torch.equal(prompts.points_xy[:, 2], torch.zeros(3, 2))
    assert prompts.point_labels.tolist() == [[1, 0, -1], [1, 1, -1], [0, 0, -1]]
    assert prompts.mask_logits is None


def test_click_and_box_have_equally_many_points() -> None:
    box = Prompts.from_boxes(torch.tensor([0]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert box.points_xy.tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert box.point_labels.tolist() == [[PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]]
    assert box.points_xy.shape == clicks(1, 1).points_xy.shape


def test_accepts_zero_prompts() -> None:
    for prompts in (clicks(0), Prompts.from_boxes(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))):
        assert len(prompts) == 0
        assert prompts.points_xy.shape[0] == prompts.point_labels.shape[0] == 0


def test_with_point_appends_without_changing_the_original() -> None:
    before = clicks(2, 1)
    logits = torch.rand(2, 1, 4, 4)
    after = before.with_point(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), torch.tensor([0, 1]), logits)
    assert before.points_xy.shape == (2, 2, 2)
    assert after.points_xy[:, -1].tolist() == [[5.0, 6.0], [7.0, 8.0]]
    assert after.point_labels.tolist() == [[1, -1, 0], [1, -1, 1]]
    assert after.mask_logits is logits
    assert torch.equal(after.image_index, before.image_index)


def test_with_mask_changes_nothing_else() -> None:
    before = clicks(2, 1)
    after = before.with_mask(torch.rand(2, 1, 4, 4))
    assert before.mask_logits is None
    assert after.mask_logits is not None
    assert after.points_xy is before.points_xy


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True])])
@pytest.mark.parametrize("with_mask", [False, True])
def test_indexing_selects_every_field(index: slice | torch.Tensor, with_mask: bool) -> None:
    prompts = clicks(3)
    if with_mask:
        prompts = prompts.with_mask(torch.rand(3, 1, 4, 4))
    chosen = prompts[index]
    assert chosen.image_index.tolist() == [1, 2]
    assert torch.equal(chosen.points_xy, prompts.points_xy[1:])
    assert torch.equal(chosen.point_labels, prompts.point_labels[1:])
    if with_mask:
        assert torch.equal(chosen.mask_logits, prompts.mask_logits[1:])
    else:
        assert chosen.mask_logits is None


def batch(images: torch.Tensor) -> Batch:
    return Batch(
        keys=("a",),
        images=images,
        sizes_hw=torch.tensor([[8, 6]]),
        image_index=torch.tensor([0, 0]),
        target_masks=torch.ones(2, 8, 8, dtype=torch.bool),
    )


def test_shapes_are_checked_in_tests() -> None:
    """If this fails the import hook is off and no other test checks a shape."""
    with pytest.raises(TypeCheckError, match="points_xy"):
        Prompts(image_index=torch.zeros(3).long(), points_xy=torch.zeros(2, 1, 2), point_labels=torch.zeros(2, 1).long())
    with pytest.raises(TypeCheckError, match="iou_scores"):
        Prediction(mask_logits=torch.zeros(2, 3, 4, 4), iou_scores=torch.zeros(2, 1))
    with pytest.raises(TypeCheckError, match="images"):
        batch(torch.zeros(1, 3, 8, 8))


def test_structures_are_frozen_and_slotted() -> None:
    prompts = clicks()
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompts.mask_logits = None
    assert not hasattr(prompts, "__dict__")


def test_batch_moves_its_tensors_and_nothing_else() -> None:
    before = batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    after = before.to("meta")
    for field in dataclasses.fields(Batch):
        value, moved = getattr(before, field.name), getattr(after, field.name)
        if isinstance(value, torch.Tensor):
            assert (value.device.type, moved.device.type) == ("cpu", "meta"), field.name
        else:
            assert moved == value


def test_best_selects_the_highest_iou_score() -> None:
    logits = torch.arange(6.0).reshape(2, 3, 1, 1)
    best = Prediction(mask_logits=logits, iou_scores=torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]])).best()
    assert best.mask_logits.flatten().tolist() == [1.0, 3.0]
    assert torch.equal(best.iou_scores, torch.tensor([[0.9], [0.8]]))


def test_best_of_one_candidate_and_of_no_prompts() -> None:
    one = Prediction(mask_logits=torch.zeros(2, 1, 4, 4), iou_scores=torch.zeros(2, 1))
    assert one.best() is one
    none = Prediction(mask_logits=torch.zeros(0, 3, 4, 4), iou_scores=torch.zeros(0, 3)).best()
    assert none.mask_logits.shape == (0, 1, 4, 4)
