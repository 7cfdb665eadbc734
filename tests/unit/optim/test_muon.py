"""Muon compared with torch's implementation, and within the optimizer of a run."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from conftest import small_sam
from torch import nn

from sam_train.optim import OptimizerFactory
from sam_train.optim.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(32, 32), (24, 96), (96, 24)])
def test_five_steps_equal_torch_muon(shape: tuple[int, int]) -> None:
    """torch multiplies in bfloat16, so its direction is known to some hundredths."""
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Muon([{"params": [ours], "lr": 0.02, "weight_decay": 0.1, "orthogonal": True}], lr=1.0)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonalize(matrix))
    assert found.min() > 0.6
    assert found.max() < 1.2
    along = (u.T @ orthogonalize(matrix) @ v.T).diagonal()
    torch.testing.assert_close(along.sort().values, found.sort().values, rtol=1e-4, atol=1e-4)


def test_other_groups_equal_adamw() -> None:
    vector, twin, matrix = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(16, 16))
    optimizer = Muon(
        [
            {"params": [vector], "lr": 0.1, "weight_decay": 0.2},
            {"params": [matrix], "lr": 0.3, "weight_decay": 0.2, "orthogonal": True},
        ],
        lr=1.0,
        betas=(0.9, 0.95),
    )
    reference = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95))
    for _ in range(3):
        vector.grad = twin.grad = torch.randn(8)
        optimizer.step()
        reference.step()
    assert torch.equal(vector, twin)
    assert torch.equal(matrix, torch.ones(16, 16)), "without a gradient nothing moves, and nothing decays"


def test_rejects_groups_with_non_matrices() -> None:
    with pytest.raises(ValueError, match=r"orthogonal=True holds tensors of \[\(3,\)\]: expected matrices only"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}], lr=0.1)


def test_parameters_are_split_between_muon_and_adamw() -> None:
    model = small_sam()
    optimizer, _ = OptimizerFactory(lr=1e-3, muon_lr=4e-3, layer_decay=1.0, warmup_steps=10).build(model, 100)
    assert isinstance(optimizer, Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = {names[id(p)] for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    assert "image_encoder.blocks.0.mlp.lin1.weight" in of_muon
    for not_linear in ("image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.mask_tokens.weight"):
        assert not_linear not in of_muon
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    assert {g["lr"] for g in optimizer.param_groups if g["orthogonal"]} == {4e-4}, "warm-up is for both"
    assert {g["lr"] for g in optimizer.param_groups if not g["orthogonal"]} == {1e-4}


def test_resumes_from_its_state() -> None:
    torch.manual_seed(1)
    model = small_sam()
    factory = OptimizerFactory(lr=1e-3, muon_lr=4e-3, warmup_steps=2)
    optimizer, _ = factory.build(model, 10)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    step(model, optimizer, 0)
    other = small_sam()
    other.load_state_dict(model.state_dict())
    resumed, _ = factory.build(other, 10)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    step(model, optimizer, 1)
    step(other, resumed, 1)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
