"""Packed decoding: prompts over several images in one call give the same predictions as separate calls."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import small_sam
from torch import Tensor, nn

from sam_train.model import Sam, chunk_sizes, mask_decoder
from sam_train.model.build import build_sam
from sam_train.model.image_encoder import HighResFeatures
from sam_train.model.layers import MLP, LayerNorm2d
from sam_train.model.mask_decoder import _conv_transpose_2x2, _to_pixel_order
from sam_train.model.mask_statistics import MaskStatisticsHead, mask_statistics
from sam_train.model.prompt_encoder import PositionEmbeddingRandom
from sam_train.structures import Prompts

TINY: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "prompt_dim": 32,
    "decoder_mlp_dim": 32,
    "decoder_heads": 4,
}


class PositionsInDouble(PositionEmbeddingRandom):
    """Ours are always fp32, where rounding depends on how many points are placed at once: by a millionth."""

    def forward(self, points: Tensor) -> Tensor:
        angles = 2 * torch.pi * ((2 * points.double() - 1) @ self.positional_encoding_gaussian_matrix.double())
        return torch.cat([angles.sin(), angles.cos()], -1)


@pytest.fixture
def model() -> Sam:
    return build_sam(**TINY).eval().double()


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(3, 32, 4, 4, dtype=torch.float64)


def mixed_prompts(image_index: Tensor) -> Prompts:
    """Clicks and boxes in turn, one correction each."""
    n = len(image_index)
    clicks = Prompts.from_points(image_index, torch.rand(n, 1, 2) * 64, torch.ones(n, 1, dtype=torch.long))
    boxes = Prompts.from_boxes(image_index, torch.rand(n, 2, 2).sort(1).values.flatten(1) * 64)
    use_box = (torch.arange(n) % 2 == 0)[:, None]
    mixed = Prompts(
        image_index=image_index,
        points_xy=torch.where(use_box[..., None], boxes.points_xy, clicks.points_xy),
        point_labels=torch.where(use_box, boxes.point_labels, clicks.point_labels),
    )
    return mixed.with_point(torch.rand(n, 2) * 64, torch.arange(n) % 2, None)


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_packed_over_three_images_equals_one_call_a_prompt(
    model: Sam, embeddings: Tensor, with_mask: bool, multimask_output: bool
) -> None:
    model.prompt_encoder.pe_layer = PositionsInDouble(16)
    prompts = mixed_prompts(torch.tensor([2, 0, 0, 1, 2, 0, 2]))
    if with_mask:
        prompts = prompts.with_mask(torch.randn(7, 1, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        together = model.decode(embeddings, prompts, multimask_output=multimask_output)
        assert together.mask_logits.shape == (7, 3 if multimask_output else 1, 16, 16)
        assert together.mask_logits.dtype == torch.float64
        for i in range(7):
            one = prompts[i : i + 1]
            image = int(one.image_index)
            own = Prompts(
                image_index=torch.zeros(1, dtype=torch.long),
                points_xy=one.points_xy,
                point_labels=one.point_labels,
                mask_logits=one.mask_logits,
            )
            alone = model.decode(embeddings[image : image + 1], own, multimask_output=multimask_output)
            assert torch.allclose(together.mask_logits[i], alone.mask_logits[0], rtol=0, atol=1e-12)
            assert torch.allclose(together.iou_scores[i], alone.iou_scores[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("low_rank", [0.0, 100.0])
@pytest.mark.parametrize("with_mask", [True, False])
def test_eight_images_in_one_call_equal_eight_calls(
    model: Sam, with_mask: bool, low_rank: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_decoder, "MAX_LOW_RANK_SHARE", low_rank)
    embeddings = torch.randn(8, 32, 4, 4, dtype=torch.float64)
    prompts = mixed_prompts(torch.arange(64) % 8)
    if with_mask:
        prompts = prompts.with_mask(torch.randn(64, 1, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        together = model.decode(embeddings, prompts, multimask_output=True)
        for image in range(8):
            own = replace(prompts[prompts.image_index == image], image_index=torch.zeros(8, dtype=torch.long))
            alone = model.decode(embeddings[image : image + 1], own, multimask_output=True)
            # Equal to the bit but for a last one that the linear algebra library may round by where in memory a matrix lies.
            torch.testing.assert_close(together.mask_logits[prompts.image_index == image], alone.mask_logits, rtol=0, atol=1e-13)
            torch.testing.assert_close(together.iou_scores[prompts.image_index == image], alone.iou_scores, rtol=0, atol=1e-13)


@pytest.mark.parametrize("low_rank", [0.0, 100.0])
@pytest.mark.parametrize("with_mask", [True, False])
def test_results_do_not_depend_on_chunks_or_token_form(
    model: Sam, embeddings: Tensor, with_mask: bool, low_rank: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers and gradients are those of the other form, of more prompts at once, and of keeping all for backward."""
    prompts = mixed_prompts(torch.tensor([0] * 7 + [1, 2]))
    if with_mask:
        prompts = prompts.with_mask(torch.randn(9, 1, 16, 16, dtype=torch.float64))

    def run() -> list[Tensor]:
        leaf = embeddings.clone().requires_grad_()
        model.zero_grad()
        answer = model.decode(leaf, prompts, multimask_output=True)
        (answer.mask_logits.square().mean() + answer.iou_scores.sum()).backward()
        return [answer.mask_logits.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]  # type: ignore[list-item]

    monkeypatch.setattr(mask_decoder, "MIN_PROMPTS_FOR_LOW_RANK", 1)
    monkeypatch.setattr(mask_decoder, "MAX_LOW_RANK_SHARE", low_rank)
    whole = run()
    monkeypatch.setattr(mask_decoder, "MAX_LOW_RANK_SHARE", 100 - low_rank)
    monkeypatch.setattr(
        chunk_sizes, "CPU_CHUNK_SIZES", replace(chunk_sizes.CPU_CHUNK_SIZES, image_tokens=2 * 32 * 16, upscaling=5 * 32)
    )
    chunked = run()
    assert len(whole) == len(chunked) > 40
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-11) for a, b in zip(whole, chunked, strict=True))


@pytest.mark.parametrize("low_rank", [0.0, 100.0])
@pytest.mark.parametrize("with_mask", [True, False])
def test_prompts_below_min_iou_are_not_upscaled(
    model: Sam, embeddings: Tensor, with_mask: bool, low_rank: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_decoder, "MIN_PROMPTS_FOR_LOW_RANK", 1)
    monkeypatch.setattr(mask_decoder, "MAX_LOW_RANK_SHARE", low_rank)
    prompts = mixed_prompts(torch.tensor([0] * 7 + [1, 2]))
    if with_mask:
        prompts = prompts.with_mask(torch.randn(9, 1, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        whole = model.decode(embeddings, prompts, multimask_output=True)
        best = whole.iou_scores.amax(1)
        least = float(best.sort().values[3:5].mean())
        some = model.decode(embeddings, prompts, multimask_output=True, min_iou=least)
        none = model.decode(embeddings, prompts, multimask_output=True, min_iou=float(best.max()) + 1)
    assert torch.equal(some.iou_scores, whole.iou_scores)
    assert (best >= least).sum() == 5
    assert torch.allclose(some.mask_logits[best >= least], whole.mask_logits[best >= least], rtol=1e-9, atol=1e-12)
    assert bool((some.mask_logits[best < least] == -torch.inf).all())
    assert bool((none.mask_logits == -torch.inf).all())


def test_predictions_depend_on_the_image(model: Sam, embeddings: Tensor) -> None:
    prompts = Prompts.from_points(torch.tensor([0, 1]), torch.full((2, 1, 2), 20.0), torch.ones(2, 1, dtype=torch.long))
    answer = model.decode(embeddings, prompts, multimask_output=False)
    assert (answer.mask_logits[0] - answer.mask_logits[1]).abs().max() > 1e-3


def test_gradients_reach_each_prompts_image_alone(model: Sam, embeddings: Tensor) -> None:
    leaf = embeddings.clone().requires_grad_()
    prompts = Prompts.from_points(torch.tensor([0, 2]), torch.full((2, 1, 2), 20.0), torch.ones(2, 1, dtype=torch.long))
    model.decode(leaf, prompts, multimask_output=True).mask_logits.sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad.flatten(1).abs().sum(1) > 0).tolist() == [True, False, True]


def test_the_order_of_the_points_does_not_matter(model: Sam, embeddings: Tensor) -> None:
    points, labels = torch.rand(1, 4, 2) * 64, torch.tensor([[1, 0, 1, 0]])
    order = torch.tensor([2, 0, 3, 1])
    one = Prompts.from_points(torch.tensor([0]), points, labels)
    other = Prompts.from_points(torch.tensor([0]), points[:, order], labels[:, order])
    answers = [model.decode(embeddings, p, multimask_output=False).mask_logits for p in (one, other)]
    assert torch.allclose(*answers, rtol=0, atol=1e-6)


def test_padding_points_have_no_position(model: Sam, embeddings: Tensor) -> None:
    labels = torch.tensor([[1, -1]])
    here, there = torch.tensor([[[5.0, 6], [0, 0]]]), torch.tensor([[[5.0, 6], [63, 17]]])
    answers = [
        model.decode(
            embeddings, Prompts(image_index=torch.tensor([0]), points_xy=p, point_labels=labels), multimask_output=False
        ).mask_logits
        for p in (here, there)
    ]
    assert torch.equal(*answers)


def test_no_prompts_give_an_empty_prediction(model: Sam, embeddings: Tensor) -> None:
    prompts = Prompts.from_points(torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.long))
    assert model.decode(embeddings, prompts, multimask_output=True).mask_logits.shape == (0, 3, 16, 16)


def test_positions_are_fp32_under_autocast() -> None:
    model = build_sam(**TINY).eval()
    points = torch.rand(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model.prompt_encoder.pe_layer(points)
    assert under.dtype == torch.float32
    assert torch.equal(under, model.prompt_encoder.pe_layer(points))


def test_decoding_under_autocast_stays_near() -> None:
    model = build_sam(**TINY).eval()
    embeddings = torch.randn(3, 32, 4, 4)
    prompts = mixed_prompts(torch.tensor([0, 1, 2])).with_mask(torch.randn(3, 1, 16, 16))
    with torch.no_grad():
        exact = model.decode(embeddings, prompts, multimask_output=True).mask_logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.decode(embeddings, prompts, multimask_output=True).mask_logits.float()
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_conv_transpose_2x2_equals_torch() -> None:
    conv = nn.ConvTranspose2d(6, 4, 2, stride=2)
    x = torch.randn(2, 6, 3, 5)
    expected = conv(x)
    actual = _conv_transpose_2x2(x.permute(0, 2, 3, 1), conv)  # n h w 2 2 o
    assert torch.allclose(actual.permute(0, 5, 1, 3, 2, 4).reshape(expected.shape), expected, atol=1e-6)


def test_high_res_features_are_added_at_their_pixel() -> None:
    """A stem feature is added at its own pixel, in whatever order the decoder stores pixels."""
    h, w, dim = 3, 5, 32
    half, quarter = torch.randn(1, 2 * h, 2 * w, dim // 4), torch.randn(1, 4 * h, 4 * w, dim // 8)
    folded = torch.cat(HighResFeatures.fold(half, quarter), 1)[0].flatten(1).T  # L, 3 C as the decoder takes them
    children = folded[:, :dim].view(h, w, 2, 2, -1).permute(0, 2, 1, 3, 4).reshape(1, 2 * h, 2 * w, -1)
    assert torch.equal(children, half)
    for channel in range(dim // 8):
        pixels = folded[:, dim:].unflatten(1, (16, -1))[..., channel]
        assert torch.equal(_to_pixel_order(pixels.reshape(1, 1, -1), (h, w))[0, 0], quarter[0, ..., channel])


def test_high_res_features_change_masks_and_receive_gradients() -> None:
    model = build_sam(**(TINY | {"patch_size": 8, "stem": "conv", "high_res_features": True, "window_size": 4})).eval()
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    embeddings = model.encode_images(images, sizes)
    assert embeddings.shape == (1, 4 * 32, 8, 8)
    answer = model.decode(embeddings, mixed_prompts(torch.tensor([0, 0])), multimask_output=True)
    answer.mask_logits.square().mean().backward()
    details = model.image_encoder.details
    assert details is not None
    assert all(
        layer.weight.grad is not None and layer.weight.grad.abs().max() > 0 for layer in (details.at_half, details.at_quarter)
    )
    without = torch.cat([embeddings[:, :32], torch.zeros_like(embeddings[:, 32:])], 1)
    plain = model.decode(without, mixed_prompts(torch.tensor([0, 0])), multimask_output=True)
    assert not torch.equal(plain.mask_logits, answer.mask_logits)
    with pytest.raises(ValueError, match="channels"):
        model.decode(embeddings[:, :48], mixed_prompts(torch.tensor([0])), multimask_output=True)


def test_iou_sigmoid_applies_to_scores() -> None:
    plain, squashed = (small_sam(iou_sigmoid=sigmoid).eval() for sigmoid in (False, True))
    for parameter in plain.mask_decoder.iou_prediction_head.parameters():
        parameter.data.normal_(std=0.5)
    assert squashed.state_dict().keys() == plain.state_dict().keys()
    squashed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 16, 2, 2)
    prompts = Prompts.from_points(torch.tensor([0, 1]), torch.full((2, 1, 2), 9.0), torch.ones(2, 1, dtype=torch.long))
    for multimask_output in (True, False):
        expected, found = (m.decode(images, prompts, multimask_output=multimask_output) for m in (plain, squashed))
        assert torch.allclose(found.iou_scores, expected.iou_scores.sigmoid())
        assert torch.equal(found.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("multimask_output", [False, True])
def test_scores_from_masks_add_a_value_for_each_mask(multimask_output: bool) -> None:
    model, plain = small_sam(iou_from_masks=True).eval(), small_sam().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert {name.rsplit(".", 4)[0] for name in unexpected} == {"mask_decoder.mask_statistics_head"}
    images = torch.randn(2, 16, 2, 2)
    prompts = Prompts.from_points(torch.tensor([0, 1]), torch.full((2, 1, 2), 9.0), torch.ones(2, 1, dtype=torch.long))
    found, expected = (m.decode(images, prompts, multimask_output=multimask_output) for m in (model, plain))
    assert torch.equal(found.mask_logits, expected.mask_logits)
    head = model.mask_decoder.mask_statistics_head
    assert head is not None
    assert torch.allclose(found.iou_scores, expected.iou_scores + head(found.mask_logits))
    filtered = model.decode(images, prompts, multimask_output=multimask_output, min_iou=float("inf"))
    assert torch.equal(filtered.mask_logits, found.mask_logits)  # the scores are known only after upscaling


def test_scores_from_masks_carry_no_gradient_into_the_masks() -> None:
    head = MaskStatisticsHead()
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    head(logits).sum().backward()
    assert logits.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_mask_statistics_agree_with_their_definitions() -> None:
    logits = torch.tensor([[[[2.0, -3.0], [0.5, -9.0]], [[-100.0, -100.0], [-100.0, -100.0]]]])
    p = [1 / (1 + math.exp(-x)) for x in (2.0, -3.0, 0.5, -9.0)]
    area = sum(p) + 1
    mean_logit = sum(x * q for x, q in zip((2.0, -3.0, 0.5, -9.0), p, strict=True)) / area
    expected = torch.tensor(
        [[sum(q * q for q in p) / area, mean_logit / 10, math.log(area / 4) / 10], [0, 0, math.log(1 / 4) / 10]]
    )
    assert torch.allclose(mask_statistics(logits)[0], expected)


def test_layer_norm_2d_is_over_the_channels() -> None:
    norm = LayerNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5))
        norm.bias.copy_(torch.rand(5))
    x = torch.randn(2, 5, 3, 4)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_mlp_has_relu_between_its_layers_only() -> None:
    mlp = MLP(3, 4, 2, 2)
    x = torch.randn(50, 3)
    first, last = mlp.layers
    assert torch.allclose(mlp(x), last(first(x).clamp(min=0)))
    assert (mlp(x) < 0).any()
