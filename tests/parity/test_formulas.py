"""Losses, schedule and prompts are the paper's, checked against their definitions written out in plain Python.

What the paper leaves open is checked against the choice that the code states (SAM 2's focal constants, dice smoothing).
Draws are checked by their statistics, with fixed seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import small_sam
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses import SamLoss
from sam_train.losses.fused_mask_loss import fused_mask_loss
from sam_train.model.chunk_sizes import CPU_CHUNK_SIZES, override_chunk_sizes
from sam_train.optim import OptimizerFactory
from sam_train.prompts import NextStep, PromptSimulator
from sam_train.prompts.sampling import central_points, noisy_boxes, sample_uniform_points
from sam_train.structures import PointLabel, Prediction


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def focal_by_hand(logits: list[float], targets: list[float], *, alpha: float, gamma: float, normalize: str) -> float:
    total, weights = 0.0, 0.0
    for logit, target in zip(logits, targets, strict=True):
        p = sigmoid(logit)
        p_t = p if target == 1 else 1 - p
        alpha_t = alpha if target == 1 else 1 - alpha
        total += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
        weights += (1 - p_t) ** gamma
    return total / len(logits) if normalize == "pixels" else total / max(1.0, weights)


def dice_by_hand(logits: list[float], targets: list[float]) -> float:
    overlap = sum(sigmoid(x) * t for x, t in zip(logits, targets, strict=True))
    return 1 - (2 * overlap + 1) / (sum(map(sigmoid, logits)) + sum(targets) + 1)


def iou_by_hand(logits: list[float], targets: list[float]) -> float:
    both = sum(x > 0 and t == 1 for x, t in zip(logits, targets, strict=True))
    either = sum(x > 0 or t == 1 for x, t in zip(logits, targets, strict=True))
    return both / max(1, either)


def round_of(num_prompts: int, num_masks: int) -> tuple[Prediction, Tensor]:
    """Random logits and scores with random 4 x 5 targets."""
    prediction = Prediction(
        mask_logits=torch.randn(num_prompts, num_masks, 4, 5) * 2, iou_scores=torch.rand(num_prompts, num_masks)
    )
    return prediction, (torch.rand(num_prompts, 4, 5) < 0.4).float()


@pytest.mark.parametrize("normalize", ["pixels", "weights"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 2.0), (0.8, 0.0), (0.25, 3.0)])
def test_focal_loss(alpha: float, gamma: float, normalize: str) -> None:
    prediction, targets = round_of(3, 2)
    actual = fused_mask_loss(
        prediction.mask_logits.flatten(2), targets.flatten(1), alpha=alpha, gamma=gamma, normalize=normalize
    ).focal
    for n in range(3):
        for m in range(2):
            logits, target = prediction.mask_logits[n, m].flatten().tolist(), targets[n].flatten().tolist()
            expected = focal_by_hand(logits, target, alpha=alpha, gamma=gamma, normalize=normalize)
            assert actual[n, m].item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_over_the_weights_of_a_sure_answer_stays_finite() -> None:
    """Their sum falls to nothing; it counts as 1, so neither the loss nor its gradient grows without bound."""
    logits = torch.full((1, 1, 20), -30.0, requires_grad=True)
    loss = fused_mask_loss(logits, torch.zeros(1, 20), alpha=0.25, gamma=2.0, normalize="weights").focal
    loss.sum().backward()
    assert logits.grad is not None
    assert 0 <= loss.item() < 1e-20
    assert bool(logits.grad.isfinite().all())


def test_dice_loss() -> None:
    prediction, targets = round_of(3, 2)
    actual = fused_mask_loss(prediction.mask_logits.flatten(2), targets.flatten(1), alpha=0.25, gamma=2.0).dice
    for n in range(3):
        for m in range(2):
            expected = dice_by_hand(prediction.mask_logits[n, m].flatten().tolist(), targets[n].flatten().tolist())
            assert actual[n, m].item() == pytest.approx(expected, rel=1e-5)


def plain_terms(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float, normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """Focal, dice and IoU as formulas that autograd differentiates; the weights of "weights" are constants."""
    t = targets[:, None]
    signed = logits * (1 - 2 * t)
    hardness = signed.sigmoid().pow(gamma)
    focal = (alpha * t + (1 - alpha) * (1 - t)) * hardness * F.softplus(signed)
    norm = hardness.detach().sum(-1).clamp(min=1) if normalize == "weights" else logits.shape[-1]
    p, answer, target = logits.sigmoid(), logits > 0, t > 0
    iou = (answer & target).sum(-1).double() / (answer | target).sum(-1).clamp(min=1)
    return focal.sum(-1) / norm, 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1), iou


@pytest.mark.parametrize("prompts_at_once", [1, 2, 100])
@pytest.mark.parametrize("normalize", ["pixels", "weights"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.8, 0.0), (0.25, 3.0)])
def test_mask_terms_and_their_gradient_in_pieces(alpha: float, gamma: float, normalize: str, prompts_at_once: int) -> None:
    targets = (torch.rand(5, 60) < 0.4).double()
    targets[3] = 0
    logits = (torch.randn(5, 3, 60) * 4).double()
    logits[4] = -50
    given, expected_of = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    with override_chunk_sizes(replace(CPU_CHUNK_SIZES, mask_loss=prompts_at_once * 3 * 60)):
        actual = fused_mask_loss(given, targets, alpha=alpha, gamma=gamma, normalize=normalize)
        (actual.focal * torch.arange(15).view(5, 3) + actual.dice.square()).sum().backward()
    expected = plain_terms(expected_of, targets, alpha=alpha, gamma=gamma, normalize=normalize)
    (expected[0] * torch.arange(15).view(5, 3) + expected[1].square()).sum().backward()
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-12, atol=1e-14)
    assert not actual.iou.requires_grad
    torch.testing.assert_close(given.grad, expected_of.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("supervise_all_ious", [False, True])
@pytest.mark.parametrize("iou_loss", ["mse", "l1"])
@pytest.mark.parametrize("normalize", ["pixels", "weights"])
def test_the_loss_of_a_round(normalize: str, iou_loss: str, supervise_all_ious: bool) -> None:
    """20 focal + 1 dice of the lowest of three masks, and the IoU head's error on that one mask (or on all)."""
    prediction, targets = round_of(6, 3)
    loss = SamLoss(iou_weight=0.7, focal_normalize=normalize, supervise_all_ious=supervise_all_ious, iou_loss=iou_loss)
    terms = loss(prediction, targets)
    sums: Counter[str] = Counter()
    true_ious, chosen = [], set()
    for n in range(6):
        target = targets[n].flatten().tolist()
        masks = [prediction.mask_logits[n, m].flatten().tolist() for m in range(3)]
        focal = [focal_by_hand(mask, target, alpha=0.25, gamma=2, normalize=normalize) for mask in masks]
        dice = [dice_by_hand(mask, target) for mask in masks]
        best = min(range(3), key=lambda m: 20 * focal[m] + dice[m])
        ious = [iou_by_hand(mask, target) for mask in masks]
        differences = [prediction.iou_scores[n, m].item() - ious[m] for m in range(3)]
        errors = [d * d if iou_loss == "mse" else abs(d) for d in differences]
        sums["focal"] += focal[best]
        sums["dice"] += dice[best]
        sums["iou"] += sum(errors) / 3 if supervise_all_ious else errors[best]
        true_ious.append(ious[best])
        chosen.add(best)
    assert len(chosen) > 1, "the draw is to try more than one place of the best mask"
    assert terms.focal.item() == pytest.approx(sums["focal"] / 6, rel=1e-5)
    assert terms.dice.item() == pytest.approx(sums["dice"] / 6, rel=1e-5)
    assert terms.iou.item() == pytest.approx(sums["iou"] / 6, rel=1e-4)
    assert terms.total.item() == pytest.approx((20 * sums["focal"] + sums["dice"] + 0.7 * sums["iou"]) / 6, rel=1e-5)
    assert terms.true_iou.tolist() == pytest.approx(true_ious, rel=1e-5)


def test_only_the_best_mask_is_backpropagated() -> None:
    targets = torch.zeros(1, 4, 5)
    targets[:, :2] = 1
    logits = torch.stack([-4 * targets + 2, 4 * targets - 2, torch.zeros_like(targets)], 1).requires_grad_()
    scores = torch.zeros(1, 3, requires_grad=True)
    SamLoss()(Prediction(mask_logits=logits, iou_scores=scores), targets).total.backward()
    assert logits.grad is not None
    assert scores.grad is not None
    assert (logits.grad.flatten(2).abs().amax(2) > 0).tolist() == [[False, True, False]]
    assert scores.grad.tolist() == [[0, -2, 0]]  # d (0 - 1)^2


def layer_rate_by_vitdet(name: str, *, lr: float, decay: float, num_layers: int) -> float:
    """detectron2/modeling/backbone/vit.py, get_vit_lr_decay_rate, with the released SAM's names."""
    layer_id = num_layers + 1
    if name.startswith("image_encoder"):
        if ".pos_embed" in name or ".patch_embed" in name:
            layer_id = 0
        elif ".blocks." in name and ".residual." not in name:
            layer_id = int(name[name.find(".blocks.") :].split(".")[2]) + 1
    return lr * decay ** (num_layers + 1 - layer_id)


def test_layer_wise_learning_rate() -> None:
    model = small_sam(depth=3)
    factory = OptimizerFactory(lr=8e-4, layer_decay=0.6)
    rates = {id(p): g["lr"] for g in factory.parameter_groups(model) for p in g["params"]}  # type: ignore[attr-defined]
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(layer_rate_by_vitdet(name, lr=8e-4, decay=0.6, num_layers=3)), name
    assert rates[id(model.image_encoder.pos_embed)] == pytest.approx(8e-4 * 0.6**4)
    assert rates[id(model.image_encoder.neck[0].weight)] == pytest.approx(8e-4)


def test_warm_up_and_milestones_of_the_paper() -> None:
    """90k steps: linear over 250, a tenth from 60k on and a hundredth from 86,666 on."""
    factory = OptimizerFactory()
    for step in (0, 1, 100, 249):
        assert factory.lr_factor(step, 90_000) == pytest.approx((step + 1) / 250)
    for step, factor in ((250, 1), (59_999, 1), (60_000, 0.1), (86_665, 0.1), (86_666, 0.01), (89_999, 0.01)):
        assert factory.lr_factor(step, 90_000) == pytest.approx(factor), step


def test_cosine() -> None:
    factory = OptimizerFactory(schedule="cosine", warmup_steps=20)
    for step, factor in ((0, 1 / 20), (19, 1), (20, 1), (60, 0.5), (40, 0.5 + math.sqrt(0.5) / 2), (100, 0), (200, 0)):
        assert factory.lr_factor(step, 100) == pytest.approx(factor, abs=1e-9), step


def test_the_optimizer_follows_the_schedule() -> None:
    model = small_sam(depth=1)
    optimizer, schedule = OptimizerFactory(lr=1.0, layer_decay=0.5, warmup_steps=4, milestones=(0.5,)).build(model, 10)
    seen = []
    for _ in range(10):
        seen.append({round(g["lr"], 9) for g in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    factors = [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert seen == [{round(f * rate, 9) for rate in (1, 0.5, 0.25)} for f in factors]


def test_box_noise_has_a_tenth_of_the_side_as_deviation() -> None:
    """Gaussian, each coordinate by the side along its own axis, uncapped here."""
    masks = torch.zeros(4000, 100, 200, dtype=torch.bool)
    masks[:, 30:70, 60:140] = True
    noise = noisy_boxes(masks, std=0.1, max_px=1e9, rng=torch.Generator().manual_seed(0)) - torch.tensor([60.0, 30, 139, 69])
    assert noise.mean(0).abs().max() < 0.5
    assert noise.std(0).tolist() == pytest.approx([8, 4, 8, 4], rel=0.05)
    correlation = torch.corrcoef(noise.T) - torch.eye(4)
    assert correlation.abs().max() < 0.06
    within = ((noise / torch.tensor([8.0, 4, 8, 4])).abs() < 1).float().mean().item()
    assert within == pytest.approx(0.683, abs=0.02)  # a uniform of that deviation would have 0.577


def test_box_noise_is_capped() -> None:
    masks = torch.zeros(1000, 64, 64, dtype=torch.bool)
    masks[:, 12:52, 12:52] = True
    boxes = noisy_boxes(masks, std=0.1, max_px=3.0, rng=torch.Generator().manual_seed(0))
    noise = boxes - torch.tensor([12.0, 12, 51, 51])
    assert noise.abs().max() == 3
    at_the_cap = (noise.abs() == 3).float().mean().item()
    assert at_the_cap == pytest.approx(math.erfc(0.75 / math.sqrt(2)), abs=0.03)  # |N(0, 4)| > 3


def test_the_cap_is_a_share_of_the_frame() -> None:
    """20 px of 1024, so 1.25 px of 64."""
    masks = torch.zeros(500, 64, 64, dtype=torch.bool)
    masks[:, 4:60, 4:60] = True
    simulator = PromptSimulator(box_probability=1.0, box_noise_max=20 / 1024)
    prompts = simulator.first_prompts(masks, torch.zeros(500, dtype=torch.long), torch.Generator().manual_seed(0))
    noise = prompts.points_xy.flatten(1) - torch.tensor([4.0, 4, 59, 59])
    assert noise.abs().max().item() == pytest.approx(1.25)


def test_boxes_stay_boxes_inside_the_frame() -> None:
    masks = torch.zeros(500, 20, 20, dtype=torch.bool)
    masks[:250, 0:2, 17:20] = True
    masks[250:, 10, 10] = True
    boxes = noisy_boxes(masks, std=1.0, max_px=1e9, rng=torch.Generator().manual_seed(0))
    assert boxes.min() >= 0
    assert boxes.max() <= 19
    assert bool((boxes[:, 2:] >= boxes[:, :2]).all())
    assert len(boxes.unique(dim=0)) > 100
    assert bool((boxes[250:] == torch.tensor([10.0, 10, 10, 10])).all(1).any()), "an inverted box stays clean"


def test_points_are_uniform_over_the_region() -> None:
    """Chi-square over the 13 pixels of a region in two pieces: below the 99.9 % quantile of 12 degrees of freedom."""
    region = torch.zeros(6, 7, dtype=torch.bool)
    region[1, 1:4] = True
    region[3:5, 2:7] = True
    draws = 6500
    points = sample_uniform_points(region.expand(draws, 6, 7), torch.Generator().manual_seed(0)).long()
    counts = Counter(map(tuple, points.tolist()))
    assert set(counts) == {(x, y) for y, x in region.nonzero().tolist()}
    expected = draws / 13
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 32.9


def test_each_region_gets_its_own_point() -> None:
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, 4, 5] = masks[1, 0, 0] = masks[2, 2, 3] = True
    assert sample_uniform_points(masks, torch.Generator().manual_seed(0)).tolist() == [[5, 4], [0, 0], [3, 2]]


def test_central_points_are_farthest_from_the_boundary() -> None:
    """Against the distance of every pixel to every pixel outside; what lies beyond the frame is outside."""
    rng = np.random.default_rng(0)
    masks = rng.random((6, 9, 11)) < 0.9
    masks[4], masks[5] = True, False
    masks[5, 3, 2] = True
    points, distances = central_points(torch.from_numpy(masks))
    for mask, (x, y), distance in zip(masks, points.long().tolist(), distances.tolist(), strict=True):
        padded = np.pad(mask, 1)
        outside = np.argwhere(~padded) - 1
        own = {(u, v): min(math.dist((v, u), o) for o in outside) for v, u in np.argwhere(mask)}
        assert mask[y, x]
        assert distance == pytest.approx(max(own.values()), abs=1e-4)
        assert own[x, y] == pytest.approx(max(own.values()), abs=1e-4)


def test_central_points_are_robust_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's distances differ in it with the place of the memory, and many pixels are equally far from a boundary."""
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((20, 30, 40)) < 0.97)
    points, distances = central_points(masks)
    exact = cv2.distanceTransform

    def trembling(*args: Any) -> np.ndarray:
        distance = exact(*args)
        return np.nextafter(distance, np.float32(1e9) * rng.choice([-1, 1], distance.shape).astype(np.float32))

    monkeypatch.setattr(cv2, "distanceTransform", trembling)
    again, distances_again = central_points(masks)
    assert torch.equal(points, again)
    assert torch.equal(distances, distances_again)


def test_central_point_of_an_empty_region_has_distance_zero() -> None:
    assert central_points(torch.zeros(1, 4, 4, dtype=torch.bool))[1].tolist() == [0]


def test_correction_points_lie_in_the_error_region_with_the_right_label() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, answers = torch.rand(200, 8, 9) < 0.5, torch.rand(200, 8, 9) < 0.5
    simulator = PromptSimulator(num_mask_only_rounds=0)
    prompts = simulator.first_prompts(targets, torch.zeros(200, dtype=torch.long), generator)
    round_ = simulator.draw_rounds(generator)[0]
    then = simulator.next_prompts(round_, prompts, answers, targets, torch.zeros(200, 1, 8, 8), generator)
    labels = then.point_labels[:, -1].tolist()
    for n, (x, y) in enumerate(then.points_xy[:, -1].long().tolist()):
        assert answers[n, y, x] != targets[n, y, x]
        assert labels[n] == (PointLabel.FOREGROUND if targets[n, y, x] else PointLabel.BACKGROUND)
    assert set(labels) == {0, 1}


def test_corrections_are_drawn_from_both_kinds_of_error_by_their_area() -> None:
    """One draw over the union: 6 missed pixels and 2 false ones make three foreground clicks in four."""
    targets, answers = torch.zeros(2, 2000, 4, 4, dtype=torch.bool)
    targets[:, 0], targets[:, 1, :2], answers[:, 3, :2] = True, True, True
    simulator = PromptSimulator(num_mask_only_rounds=0)
    generator = torch.Generator().manual_seed(0)
    prompts = simulator.first_prompts(targets, torch.zeros(2000, dtype=torch.long), generator)
    round_ = simulator.draw_rounds(generator)[0]
    then = simulator.next_prompts(round_, prompts, answers, targets, torch.zeros(2000, 1, 4, 4), generator)
    assert then.point_labels[:, -1].float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_first_prompts_are_boxes_with_probability_one_half_and_equally_long() -> None:
    targets = torch.zeros(2000, 8, 8, dtype=torch.bool)
    targets[:, 2:6, 2:6] = True
    prompts = PromptSimulator().first_prompts(targets, torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0))
    kinds = Counter(map(tuple, prompts.point_labels.tolist()))
    assert set(kinds) == {(1, -1), (2, 3)}
    assert kinds[2, 3] == pytest.approx(1000, abs=70)
    clicks = prompts.points_xy[prompts.point_labels[:, 0] == 1, 0].long()
    assert bool(targets[0][clicks[:, 1], clicks[:, 0]].all())


def test_eleven_rounds_with_an_empty_one_at_any_place_and_at_the_end() -> None:
    simulator = PromptSimulator()
    places = Counter()
    for seed in range(900):
        rounds = simulator.draw_rounds(torch.Generator().manual_seed(seed))
        assert len(rounds) == 1 + 8 + 2
        assert [r.index for r in rounds] == list(range(11))
        assert [r.multimask_output for r in rounds] == [True] + [False] * 10
        then = [r.next_step for r in rounds]
        assert Counter(then) == {NextStep.ERROR_CLICK: 8, NextStep.MASK_ONLY: 2, NextStep.END: 1}
        assert then[-2:] == [NextStep.MASK_ONLY, NextStep.END]
        places[then.index(NextStep.MASK_ONLY)] += 1
    assert set(places) == set(range(9))
    assert min(places.values()) > 60  # 100 each is expected, with a deviation of 9.4


def test_prompts_grow_by_a_point_per_click_and_carry_the_last_prediction() -> None:
    targets = torch.zeros(4, 8, 8, dtype=torch.bool)
    targets[:, 2:6, 2:6] = True
    simulator, generator = PromptSimulator(), torch.Generator().manual_seed(3)
    prompts = simulator.first_prompts(targets, torch.arange(4), generator)
    assert prompts.mask_logits is None
    for round_ in simulator.draw_rounds(generator):
        answers, logits = torch.rand(4, 8, 8) < 0.5, torch.randn(4, 1, 8, 8)
        following = simulator.next_prompts(round_, prompts, answers, targets, logits, generator)
        grown = following.points_xy.shape[1] - prompts.points_xy.shape[1]
        assert grown == (1 if round_.next_step is NextStep.ERROR_CLICK else 0)
        assert torch.equal(following.points_xy[:, : prompts.points_xy.shape[1]], prompts.points_xy)
        if round_.next_step is not NextStep.END:
            assert following.mask_logits is logits
        prompts = following
    assert prompts.points_xy.shape == (4, 2 + 8, 2)
