"""Every trained parameter is in exactly one group; vectors and positions have no weight decay by default."""

from __future__ import annotations

import pytest
import torch
from conftest import small_sam

from sam_train.model import Sam
from sam_train.optim import OptimizerFactory


@pytest.fixture
def model() -> Sam:
    return small_sam()


def decays(factory: OptimizerFactory, model: Sam) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], g["weight_decay"]) for g in factory.parameter_groups(model) for p in g["params"]]  # type: ignore[attr-defined]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)  # type: ignore[arg-type]


def test_vectors_and_positions_are_not_decayed(model: Sam) -> None:
    found = decays(OptimizerFactory(weight_decay=0.1), model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert found[name] == (0 if parameter.ndim < 2 or name == "image_encoder.pos_embed" else 0.1), name
    assert found["image_encoder.blocks.0.attn.rel_pos_h"] == 0.1
    assert found["image_encoder.blocks.0.norm1.weight"] == 0


def test_decay_norms_and_biases_decays_all(model: Sam) -> None:
    assert set(decays(OptimizerFactory(weight_decay=0.1, decay_norms_and_biases=True), model).values()) == {0.1}


def test_frozen_parameters_are_excluded(model: Sam) -> None:
    model.image_encoder.requires_grad_(False)
    found = decays(OptimizerFactory(), model)
    assert found
    assert not any(name.startswith("image_encoder.") for name in found)


def test_without_layer_decay_there_is_one_learning_rate(model: Sam) -> None:
    assert {g["lr"] for g in OptimizerFactory(lr=1e-3, layer_decay=1.0).parameter_groups(model)} == {1e-3}


def test_the_first_step_moves_by_the_warmed_up_rate(model: Sam) -> None:
    """AdamW's first step is lr times the sign of the gradient."""
    optimizer, _ = OptimizerFactory(lr=1e-2, layer_decay=1.0, warmup_steps=10, weight_decay=0.0).build(model, 100)
    before = model.mask_decoder.iou_token.weight.clone()
    model.mask_decoder.iou_token.weight.grad = torch.ones_like(before)
    optimizer.step()
    assert torch.allclose(before - model.mask_decoder.iou_token.weight, torch.full_like(before, 1e-3), rtol=1e-3)
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_reciprocal_square_root_with_its_cool_down() -> None:
    """SAM 2's: warm-up 1k, timescale 1000, the last 5k steps to zero. Against the formula, written for whole steps."""
    factory = OptimizerFactory(warmup_steps=1000, schedule="rsqrt", timescale=1000, cooldown_steps=5000)
    found = [factory.lr_factor(step, 90_000) for step in (499, 999, 1000, 4000, 49_000, 84_999, 87_500, 89_999, 90_000)]
    at = lambda step: (1000 / step) ** 0.5  # noqa: E731 # timescale and warm-up are equal
    assert found == pytest.approx([0.5, 1, 1, 0.5, 1 / 7, at(84_999), at(87_500) * 0.5, at(89_999) / 5000, 0], rel=1e-9)
    longer = OptimizerFactory(warmup_steps=1000, schedule="rsqrt", timescale=1000)
    assert longer.lr_factor(50_000, 60_000) == longer.lr_factor(50_000, 1_000_000)


def test_without_warm_up() -> None:
    assert OptimizerFactory(warmup_steps=0).lr_factor(0, 100) == 1
    assert OptimizerFactory(warmup_steps=0, schedule="cosine").lr_factor(0, 100) == 1


def test_a_run_shorter_than_its_warm_up() -> None:
    factory = OptimizerFactory(warmup_steps=20, schedule="cosine")
    assert [factory.lr_factor(step, 5) for step in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    assert factory.lr_factor(21, 5) == pytest.approx(0)


def test_rejects_invalid_values() -> None:
    with pytest.raises(ValueError, match="schedule must be 'step', 'cosine' or 'rsqrt', got 'linear'"):
        OptimizerFactory(schedule="linear")
