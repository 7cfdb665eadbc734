"""Image encoder: windows that do not divide the grid, stems, drop path, activation checkpointing, inconsistent sizes."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch

from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.attention import relative_position_table, window_partition, window_unpartition
from sam_train.model.build import build_sam
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


def test_windows_are_filled_up_with_the_padding_given() -> None:
    windows, padded_hw = window_partition(torch.zeros(1, 1, 3, 2), 2, padding=torch.tensor([5.0, 7.0]))
    assert padded_hw == (2, 4)
    assert windows[..., 0].flatten(1).tolist() == [[0, 0, 5, 5], [0, 5, 5, 5]]
    assert windows[..., 1].flatten(1).tolist() == [[0, 0, 7, 7], [0, 7, 7, 7]]


def test_rel_pos_of_a_distance() -> None:
    table = torch.arange(5.0)[:, None]  # distances -2 ... 2
    assert relative_position_table(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_rel_pos_is_interpolated_to_another_size() -> None:
    assert relative_position_table(torch.arange(5.0)[:, None], 2)[..., 0].tolist() == [
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


STATISTICS = pytest.mark.parametrize("statistics", ["released", "image"])


@STATISTICS
def test_padding_does_not_depend_on_what_lies_there(statistics: str) -> None:
    model = build_sam(**TINY, pixel_statistics=statistics).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    other = images.clone()
    other[:, :, 40:], other[:, :, :, 50:] = 7, 200
    sizes = torch.tensor([[40, 50]])
    assert torch.equal(model.encode_images(images, sizes), model.encode_images(other, sizes))
    assert not torch.equal(model.encode_images(images, sizes), model.encode_images(images, torch.tensor([[64, 64]])))


def test_image_statistics_remove_exposure() -> None:
    """A threefold brightness changes the result only through STD_EPSILON; a constant offset does not change it."""
    dim = torch.randint(0, 80, (1, 3, 64, 64), dtype=torch.uint8)
    sizes, others = torch.tensor([[64, 64]]), (3 * dim, dim + 100)
    model = build_sam(**TINY, pixel_statistics="image").eval()
    expected = model.encode_images(dim, sizes)
    for other in others:
        assert (model.encode_images(other, sizes) - expected).abs().max() < 0.15 * expected.abs().max()
    torch.testing.assert_close(model.encode_images(others[1], sizes), expected, rtol=0, atol=1e-4)
    released = build_sam(**TINY).eval()
    released.load_state_dict(model.state_dict())
    assert (released.encode_images(others[0], sizes) - released.encode_images(dim, sizes)).abs().max() > 0.5


def test_a_uniform_image_normalises_to_zeros() -> None:
    """A black image does too: there is no division by zero."""
    model, seen = build_sam(**TINY, pixel_statistics="image").eval(), []
    model.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode_images(torch.full((2, 3, 64, 64), 130, dtype=torch.uint8), torch.tensor([[64, 64], [1, 64]]))
    assert not seen[0].any()


def test_rejects_unknown_pixel_statistics() -> None:
    with pytest.raises(ConfigError, match="pixel_statistics must be 'released' or 'image', got 'imagenet'"):
        build_sam(**TINY, pixel_statistics="imagenet")


@STATISTICS
def test_an_image_does_not_see_the_others_of_its_batch(statistics: str) -> None:
    model = build_sam(**TINY, pixel_statistics=statistics).eval().double()
    images, sizes = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 40], [64, 64], [30, 64]])
    together = model.encode_images(images, sizes)
    for i in range(3):
        assert torch.allclose(model.encode_images(images[i : i + 1], sizes[i : i + 1])[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["torch", "fairscale"])
def test_activation_checkpointing_changes_neither_keys_nor_numbers(how: str) -> None:
    """Drop path draws the same in the second forward pass; a row of 20 tokens is more than a strip of evaluation has."""
    numbers = TINY | {"image_size": 160, "patch_size": 8, "drop_path_rate": 0.5}
    plain, wrapped = build_sam(**numbers), build_sam(**numbers, activation_checkpointing=how)
    randomise(plain)
    wrapped.load_state_dict(plain.state_dict(), strict=True)
    expected, actual = gradients(plain), gradients(wrapped)
    assert expected.keys() == actual.keys()
    for name, grad in expected.items():
        assert torch.allclose(grad, actual[name], rtol=0, atol=1e-5 * grad.abs().max().item()), name


def gradients(model: Sam) -> dict[str, torch.Tensor]:
    """Return the gradients of the encoder's parameters in training; all models get the same weights."""
    torch.manual_seed(1)
    images, weights = torch.randn(2, 3, model.image_size, model.image_size), torch.randn(2, 16, 20, 20)
    (model.image_encoder.train()(images) * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.image_encoder.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def randomise(model: torch.nn.Module) -> None:
    """No parameter at zero or one, where a mistake may not show."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)


def test_torch_checkpointing_saves_memory() -> None:
    """Blocks whose inner activations are not kept leave less for the backward pass."""
    kept = {}
    for how in ("none", "torch"):
        block, sizes = build_sam(**TINY, activation_checkpointing=how).image_encoder.blocks[0], []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            block(torch.randn(1, 4, 4, 16))
        kept[how] = sum(sizes)
    assert kept["torch"] < kept["none"] / 10


def test_a_copy_of_a_checkpointed_encoder_computes_with_its_own_weights() -> None:
    encoder = build_sam(**TINY, activation_checkpointing="torch").image_encoder
    duplicate, image = copy.deepcopy(encoder), torch.randn(1, 3, 64, 64)
    before = duplicate(image)
    randomise(encoder)
    assert torch.equal(duplicate(image), before)


@pytest.mark.parametrize("use_rel_pos", [True, False])
def test_evaluation_in_strips_gives_the_numbers_of_the_whole_map(use_rel_pos: bool) -> None:
    """20 rows: more than a strip of a global block, and windows of 3 reach over the map."""
    encoder = build_sam(**TINY | {"image_size": 160, "patch_size": 8, "use_rel_pos": use_rel_pos}).image_encoder.eval().double()
    randomise(encoder)
    images = torch.randn(2, 3, 160, 160, dtype=torch.double)
    expected = encoder(images)
    with torch.no_grad():
        assert torch.allclose(encoder(images), expected, rtol=0, atol=1e-12)


def test_drop_path_draws_alike_with_and_without_gradients() -> None:
    """A training pass without gradients (as under fairscale's checkpointing) must not draw once for every strip."""
    encoder = build_sam(**TINY | {"image_size": 160, "patch_size": 8, "drop_path_rate": 0.5}).image_encoder.train()
    images, answers = torch.randn(4, 3, 160, 160), []
    for enabled in (True, False):
        torch.manual_seed(2)
        with torch.set_grad_enabled(enabled):
            answers.append(encoder(images))
    assert torch.allclose(*answers, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size_hw", [(128, 128), (64, 48), (16, 80)])
def test_other_sizes_than_the_models(size_hw: tuple[int, int]) -> None:
    encoder = build_sam(**TINY).image_encoder
    randomise(encoder)
    answer = encoder(torch.randn(2, 3, *size_hw))
    assert answer.shape == (2, 16, size_hw[0] // 16, size_hw[1] // 16)
    answer.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def test_positions_are_as_learned_at_the_models_size_and_bicubic_at_others() -> None:
    encoder = build_sam(**TINY).image_encoder
    assert encoder._positions(4, 4) is encoder.pos_embed
    rows = torch.arange(4.0)
    encoder.pos_embed.data = rows[:, None, None].expand(1, 4, 4, 16).clone()
    # Half a cell apart, the middle four by hand: Catmull-Rom with a = -0.75 between the values 0 1 2 3.
    near, far = -0.75 * 0.25 * 0.75**2, -0.75 * 0.25**2 * 0.75
    second = (1.25 * 0.25**3 - 2.25 * 0.25**2 + 1) * 1 + (1.25 * 0.75**3 - 2.25 * 0.75**2 + 1) * 2 + near * 0 + far * 3
    assert encoder._positions(8, 4)[0, 3, 0, 0].item() == pytest.approx(second)
    assert encoder._positions(8, 4).shape == (1, 8, 4, 16)


def test_rejects_sides_that_are_not_multiples_of_the_patch() -> None:
    with pytest.raises(ValueError, match=r"\(64, 50\), expected multiples of patch_size 16"):
        build_sam(**TINY).image_encoder(torch.zeros(1, 3, 64, 50))


COMPILE = """
import torch
from sam_train.model.build import build_sam

torch.set_num_threads(1)
for how, training in (("none", True), ("torch", True), ("none", False)):
    encoder = build_sam(**{numbers}, activation_checkpointing=how).image_encoder.train(training)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")  # inductor's tracing without its compiler
    image = torch.randn(1, 3, 64, 64)
    with torch.set_grad_enabled(training):
        assert torch.allclose(compiled(image), encoder(image), rtol=0, atol=1e-5), (how, training)
"""


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    """Run in a separate process, because the shape checks of the tests do not compile."""
    script = COMPILE.format(numbers=TINY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


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
        ({"activation_checkpointing": "deepspeed"}, "must be none, torch or fairscale, got .deepspeed"),
        ({"global_attn_indexes": [2]}, r"global_attn_indexes \[2\]"),
    ],
)
def test_rejects_inconsistent_sizes(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        build_sam(**TINY | changes)


def test_conv_stem_rejects_patch_sizes_that_are_not_powers_of_two() -> None:
    with pytest.raises(ValueError, match="power of two as patch_size, got 12"):
        build_sam(**TINY | {"image_size": 48, "patch_size": 12, "stem": "conv"})
