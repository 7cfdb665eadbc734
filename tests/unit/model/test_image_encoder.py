"""The image encoder at its edges: windows that do not divide the grid, stems, drop path, checkpointing, values that clash."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam_train.errors import ConfigError
from sam_train.model.build import build_sam
from sam_train.model.image_encoder import _gather_rel_pos, window_partition, window_unpartition
from sam_train.model.layers import DropPath

TINY: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 3,
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
    "decoder_heads": 2,
}


@pytest.mark.parametrize(("height", "width", "size"), [(4, 4, 2), (5, 7, 3), (2, 2, 5), (1, 6, 1)])
def test_windows_round_trip(height: int, width: int, size: int) -> None:
    x = torch.randn(2, height, width, 3)
    windows, padded_hw = window_partition(x, size)
    rows, columns = -(-height // size), -(-width // size)
    assert padded_hw == (rows * size, columns * size)
    assert windows.shape == (2 * rows * columns, size, size, 3)
    assert torch.equal(window_unpartition(windows, size, padded_hw, (height, width)), x)


def test_windows_are_the_squares_of_the_grid_in_reading_order() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    windows, _ = window_partition(x, 2)
    assert windows[..., 0].flatten(1).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_rel_pos_of_a_distance() -> None:
    table = torch.arange(5.0)[:, None]  # distances -2 ... 2
    assert _gather_rel_pos(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_rel_pos_is_interpolated_to_another_size() -> None:
    assert _gather_rel_pos(torch.arange(5.0)[:, None], 2)[..., 0].tolist() == [
        [2, pytest.approx(1 / 3)],
        [pytest.approx(11 / 3), 2],
    ]


@pytest.mark.parametrize("stem", ["linear", "conv"])
@pytest.mark.parametrize(("patch_size", "grid"), [(16, 4), (8, 8)])
def test_shapes(stem: str, patch_size: int, grid: int) -> None:
    model = build_sam(**TINY | {"patch_size": patch_size, "stem": stem})
    embeddings = model.encode_images(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64], [64, 20], [1, 64]]))
    assert embeddings.shape == (3, 16, grid, grid)
    assert model.logits_size == 4 * grid


def test_padding_does_not_depend_on_what_lies_there() -> None:
    model = build_sam(**TINY).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    other = images.clone()
    other[:, :, 40:], other[:, :, :, 50:] = 7, 200
    sizes = torch.tensor([[40, 50]])
    assert torch.equal(model.encode_images(images, sizes), model.encode_images(other, sizes))
    assert not torch.equal(model.encode_images(images, sizes), model.encode_images(images, torch.tensor([[64, 64]])))


def test_an_image_does_not_see_the_others_of_its_batch() -> None:
    model = build_sam(**TINY).eval().double()
    images, sizes = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 40], [64, 64], [30, 64]])
    together = model.encode_images(images, sizes)
    for i in range(3):
        assert torch.allclose(model.encode_images(images[i : i + 1], sizes[i : i + 1])[0], together[i], rtol=0, atol=1e-12)


def test_activation_checkpointing_changes_neither_keys_nor_numbers() -> None:
    plain, wrapped = build_sam(**TINY), build_sam(**TINY, activation_checkpointing=True)
    wrapped.load_state_dict(plain.state_dict(), strict=True)
    images, sizes = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64], [64, 64]])
    weights, grads = torch.randn(2, 16, 4, 4), []
    for model in (plain, wrapped):
        model.train()
        (model.encode_images(images, sizes) * weights).sum().backward()
        grads.append({n: p.grad for n, p in model.image_encoder.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert grad is not None
        assert torch.allclose(grad, grads[1][name], rtol=0, atol=1e-5 * grad.abs().max().item()), name


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3)
    layer = DropPath(0.4)
    dropped = layer.train()(x).flatten(1)
    assert dropped.unique().tolist() == [0, pytest.approx(1 / 0.6)]
    assert bool((dropped == dropped[:, :1]).all())
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_drop_path_grows_linearly_with_depth() -> None:
    model = build_sam(**TINY | {"depth": 5, "drop_path_rate": 0.4})
    assert [block.drop_path.rate for block in model.image_encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"image_size": 65}, "image_size 65 must be a multiple of patch_size 16"),
        ({"num_heads": 3}, "embed_dim 16 of num_heads 3"),
        ({"prompt_dim": 24}, "prompt_dim 24 of 16"),
        ({"prompt_dim": 48, "decoder_heads": 5}, "decoder_heads 5"),
        ({"stem": "convolutional"}, "stem .*'convolutional'"),
        ({"global_attn_indexes": [2]}, r"global_attn_indexes \[2\]"),
    ],
)
def test_numbers_that_cannot_go_together_are_named(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        build_sam(**TINY | changes)


def test_a_conv_stem_wants_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two as patch_size, got 12"):
        build_sam(**TINY | {"image_size": 48, "patch_size": 12, "stem": "conv"})
