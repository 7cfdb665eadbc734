"""MobileSAM's encoder: image sizes, training and evaluation, attention biases that are never stale, layer-wise decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.build import build_mobile_sam
from sam_train.model.tiny_vit import MBConv, TinyViT, TinyViTAttention, relative_distance_index
from sam_train.optim import OptimizerFactory

TINY: dict[str, Any] = {
    "image_size": 64,
    "embed_dims": [8, 8, 16, 16],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_sizes": [3, 3, 5, 2],
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
    "decoder_heads": 2,
}


@pytest.fixture
def model() -> Sam:
    return shaken(build_mobile_sam(**TINY))


def shaken(model: Sam) -> Sam:
    """Randomize all parameters, because a wrong formula may give the right result for zeros and ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (48, 80), (96, 32)])
def test_any_multiple_of_sixteen(model: Sam, height: int, width: int) -> None:
    assert model.image_encoder.eval()(torch.randn(2, 3, height, width)).shape == (2, 16, height // 16, width // 16)


def test_rejects_sides_that_are_not_multiples_of_16(model: Sam) -> None:
    with pytest.raises(ValueError, match="64 x 72: both sides must be multiples of 16"):
        model.image_encoder(torch.zeros(1, 3, 64, 72))


def test_an_image_does_not_see_the_others_of_its_batch(model: Sam) -> None:
    encoder, images = model.image_encoder.eval().double(), torch.randn(3, 3, 48, 64).double()
    together = encoder(images)
    assert torch.allclose(encoder(images[1:2]), together[1:2], rtol=0, atol=1e-12)


def test_bias_index_counts_rows_first() -> None:
    """Offsets in the order in which TinyViT's own code meets them, from the first place of the window on."""
    size = 3
    places = [(y, x) for y in range(size) for x in range(size)]
    seen: dict[tuple[int, int], int] = {}
    for a in places:
        for b in places:
            seen.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(seen))
    expected = [[seen[abs(a[0] - b[0]), abs(a[1] - b[1])] for b in places] for a in places]
    assert relative_distance_index(size).tolist() == expected


def test_attention_is_the_formula_written_out() -> None:
    size, dim, heads = 2, 6, 3
    attention = TinyViTAttention(dim, heads, size)
    nn.init.normal_(attention.attention_biases)
    x = torch.randn(1, size, size, dim)
    tokens = attention.norm(x).reshape(-1, dim)
    qkv = (tokens @ attention.qkv.weight.T + attention.qkv.bias).reshape(size**2, heads, 3, dim // heads)
    answers = []
    for head in range(heads):
        q, k, v = qkv[:, head, 0], qkv[:, head, 1], qkv[:, head, 2]
        scores = torch.stack([torch.stack([(a * b).sum() for b in k]) for a in q]) * (dim // heads) ** -0.5
        for i in range(size**2):
            for j in range(size**2):
                row, column = abs(i // size - j // size), abs(i % size - j % size)
                scores[i, j] += attention.attention_biases[head, row * size + column]
        answers.append(scores.softmax(1) @ v)
    expected = torch.cat(answers, 1) @ attention.proj.weight.T + attention.proj.bias
    assert torch.allclose(attention(x).reshape(-1, dim), expected, atol=1e-6)


def test_biases_are_never_stale(model: Sam) -> None:
    """The released code keeps gathered biases while it evaluates, and so answers wrongly after a load."""
    encoder, images = model.image_encoder.eval(), torch.randn(1, 3, 64, 64)
    before = encoder(images)
    other = {k: torch.randn_like(v) if k.endswith("attention_biases") else v for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(other)
    after = encoder(images)
    assert not torch.equal(before, after)
    assert torch.equal(after, encoder.train().eval()(images))


def test_training_reaches_every_parameter(model: Sam) -> None:
    encoder = model.image_encoder.train()
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def statistics(encoder: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in encoder.named_buffers() if "running" in name]


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_learn_unless_frozen(frozen: bool) -> None:
    encoder = shaken(build_mobile_sam(**TINY, freeze_batch_norm=frozen)).image_encoder
    images = torch.randn(2, 3, 64, 64) * 3
    evaluated, before = encoder.eval()(images), statistics(encoder)
    trained = encoder.train()(images)
    assert torch.equal(evaluated, trained) == frozen
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(encoder), strict=True)) == frozen


def test_a_new_bottleneck_is_the_identity_before_its_last_activation() -> None:
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(MBConv(4, 0.0).eval()(x), nn.functional.gelu(x))


def test_drop_path_grows_linearly_with_depth() -> None:
    encoder = build_mobile_sam(**TINY, drop_path_rate=0.4).image_encoder
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])  # type: ignore[union-attr]


def test_activation_checkpointing_changes_neither_keys_nor_gradients(model: Sam) -> None:
    wrapped = build_mobile_sam(**TINY, activation_checkpointing="fairscale")
    wrapped.load_state_dict(model.state_dict(), strict=True)
    images, weights, grads = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 4, 4), []
    for encoder in (model.image_encoder.train(), wrapped.image_encoder.train()):
        (encoder(images) * weights).sum().backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    largest = max(grad.abs().max().item() for grad in grads[0].values())  # type: ignore[union-attr]
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-6 * largest) for n in grads[0])  # type: ignore[arg-type]
    pairs = zip(statistics(model.image_encoder), statistics(wrapped.image_encoder), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs), "the second pass must not count an image again"


def test_layer_decay_counts_blocks_through_the_stages(model: Sam) -> None:
    factory = OptimizerFactory(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = factory.parameter_groups(model)
    rates = {names[id(p)]: g["lr"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    decays = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    expected = {
        "patch_embed.seq.0.c.weight": 6,
        "layers.0.blocks.0.conv1.c.weight": 5,
        "layers.0.downsample.conv1.c.weight": 5,
        "layers.1.blocks.0.attn.qkv.weight": 4,
        "layers.2.blocks.0.mlp.fc1.weight": 3,
        "layers.2.blocks.1.attn.attention_biases": 2,
        "layers.2.downsample.conv3.bn.weight": 2,
        "layers.3.blocks.0.local_conv.c.weight": 1,
        "neck.0.weight": 0,
    }
    assert {name: rates[f"image_encoder.{name}"] for name in expected} == {n: 0.5**k for n, k in expected.items()}
    assert decays["image_encoder.layers.2.blocks.1.attn.attention_biases"] == 0


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"image_size": 72}, "image_size 72 must be a multiple of 16"),
        ({"prompt_dim": 24}, "prompt_dim 24 of 16"),
        ({"num_heads": [1, 2, 3, 4]}, r"multiples of num_heads \[1, 2, 3, 4\]"),
        ({"depths": [1, 1, 2]}, "four positive values each for embed_dims, depths"),
        ({"decoder_heads": 3}, "twice decoder_heads 3"),
        ({"activation_checkpointing": "torch"}, "would count every image twice: use fairscale"),
    ],
)
def test_rejects_inconsistent_sizes(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        build_mobile_sam(**TINY | changes)


def test_the_released_numbers_are_the_default() -> None:
    encoder = build_mobile_sam().image_encoder
    assert isinstance(encoder, TinyViT)
    assert len(encoder.state_dict()) == 298
    assert sum(p.numel() for p in encoder.parameters()) == 5_743_892
