"""LoRA adapters: the initial model is unchanged, only adapters train, and merging gives a plain model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from conftest import small_sam

from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.build import build_mobile_sam
from sam_train.model.lora import Lora

MOBILE: dict[str, Any] = {
    "image_size": 64, "embed_dims": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_heads": [2, 2, 2, 2], "prompt_dim": 16,
    "decoder_mlp_dim": 16, "freeze_batch_norm": True,
}  # fmt: skip


def model_of(kind: str) -> Sam:
    # A window of 3 on a grid of 4: fills windows with what the adapted projection makes of a token that is not there.
    return small_sam(image_size=64, window_size=3, use_rel_pos=True) if kind == "vit" else build_mobile_sam(**MOBILE)


@pytest.fixture(params=["vit", "mobile_sam"])
def model(request: pytest.FixtureRequest) -> Sam:
    return model_of(request.param)


def stir(model: Sam) -> None:
    """Set all trainable weights to random values, because B is initialised to zero."""
    for parameter in model.image_encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)


IMAGES, SIZES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64], [64, 40]])


@torch.no_grad()
def encoded(model: Sam) -> torch.Tensor:
    return model.eval().encode_images(IMAGES, SIZES)


def test_new_adapters_change_nothing_and_only_they_train(model: Sam) -> None:
    before, state = encoded(model), copy.deepcopy(model.state_dict())
    Lora(rank=2).inject(model)
    assert torch.allclose(encoded(model), before, atol=1e-6)
    learning = [name for name, p in model.image_encoder.named_parameters() if p.requires_grad]
    assert learning
    assert all(".lora_A." in name or ".lora_B." in name for name in learning)
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in learning} == {"qkv", "proj"}
    assert not [name for name in learning if "patch_embed" in name], "a convolution whose name is proj, too"
    assert all(p.requires_grad for part in (model.prompt_encoder, model.mask_decoder) for p in part.parameters())
    kept = {name.replace(".base_layer", ""): t for name, t in model.state_dict().items() if ".lora_" not in name}
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(("kind", "mlp"), [("vit", ["lin1", "lin2"]), ("mobile_sam", ["fc1", "fc2"])])
def test_merged_model_gives_the_same_predictions(kind: str, mlp: list[str]) -> None:
    """The merged weight equals W + alpha / rank B A."""
    model = model_of(kind)
    before, names = encoded(model), list(model.state_dict())
    lora = Lora(rank=3, alpha=6.0, targets=["qkv", "attn.proj", *mlp])
    lora.inject(model)
    stir(model)
    answers, weights = encoded(model), copy.deepcopy(model.state_dict())
    assert (answers - before).abs().max() > 0.01
    lora.merge(model)
    assert list(model.state_dict()) == names
    assert not [m for m in model.modules() if type(m).__module__.startswith("peft")]
    assert torch.allclose(encoded(model), answers, rtol=1e-5, atol=1e-5)
    layer = next(name for name in names if name.endswith(f"{mlp[0]}.weight")).removesuffix(".weight")
    low = [weights[f"{layer}.lora_{which}.default.weight"] for which in ("B", "A")]
    assert low[0].shape[1] == low[1].shape[0] == 3
    expected = weights[f"{layer}.base_layer.weight"] + 6.0 / 3 * low[0] @ low[1]
    assert torch.allclose(model.state_dict()[f"{layer}.weight"], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # fairscale hands in one of its own that does
@pytest.mark.parametrize("how", ["torch", "fairscale"])
def test_gradients_reach_the_adapters_through_checkpointed_blocks(how: str) -> None:
    """A block whose input learns nothing is still gone through backwards."""
    gradients = []
    for activation_checkpointing in ("none", how):
        torch.manual_seed(0)
        model = small_sam(activation_checkpointing=activation_checkpointing)
        Lora(rank=2).inject(model)
        stir(model)
        model.train().encode_images(IMAGES[:, :, :32, :32], SIZES // 2).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.image_encoder.named_parameters() if p.requires_grad})
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        assert grad is not None
        assert torch.allclose(grad, gradients[1][name], rtol=1e-4, atol=1e-5), name


def test_rejects_unknown_targets_and_missing_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no linear layer 'fc1'; it has lin1, lin2, proj, qkv"):
        Lora(targets=["qkv", "fc1"]).inject(small_sam())
    with pytest.raises(ValueError, match="rank >= 1"):
        Lora(rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[lora\]'"):
        Lora().inject(small_sam())
