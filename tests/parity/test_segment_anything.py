"""Our `Sam` is the `Sam` of segment_anything 1.0: same state-dict keys, and with the same weights the same numbers.

Weights are random and copied across with a strict `load_state_dict`. Answers agree within 1e-4 of their largest value,
decoder gradients within 1e-3. The reference decodes one image a call and encodes points and boxes by separate paths; ours
packs prompts over images and sees a box as two labelled points.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference_models import reference_sam
from torch import Tensor, nn

from sam_train.model import Sam
from sam_train.model.build import build_sam
from sam_train.structures import Prediction, Prompts

SIZE = 128
SIZES_HW = torch.tensor([[128, 100], [83, 128]])


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Sam]:
    """The reference and ours with the same random weights, rel-pos and biases not left at zero."""
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 4, "global_attn_indexes": [1, 3], "window_size": 7}
    reference = reference_sam(image_size=SIZE, **numbers)
    for parameter in reference.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    ours = build_sam(image_size=SIZE, **numbers).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


@pytest.fixture(params=[1, 1000], ids=["low rank", "dense"])
def image_token_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with low-rank and with dense image tokens, for any number of prompts."""
    monkeypatch.setattr("sam_train.model.mask_decoder.MIN_PROMPTS_FOR_LOW_RANK", request.param)


@pytest.fixture(scope="module")
def embeddings(pair: tuple[nn.Module, Sam]) -> Tensor:
    """Our embeddings of two images of different aspect in one padded batch."""
    with torch.no_grad():
        return pair[1].encode_images(images(), SIZES_HW)


def images() -> Tensor:
    """Noise all over the frame, padding included: pixels outside the image must not matter."""
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, reference: Tensor, tolerance: float = 1e-4) -> bool:
    return ours.shape == reference.shape and bool((ours - reference).abs().max() <= tolerance * reference.abs().max())


def reference_decode(
    reference: Any,
    embeddings: Tensor,
    image: int,
    *,
    points: tuple[Tensor, Tensor] | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
    multimask_output: bool,
) -> Prediction:
    """Decode prompts of one image as `Sam.forward` of segment_anything does."""
    sparse, dense = reference.prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits, iou = reference.mask_decoder(
        image_embeddings=embeddings[image : image + 1],
        image_pe=reference.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )
    return Prediction(mask_logits=logits, iou_scores=iou)


def test_image_embeddings_of_a_padded_batch(pair: tuple[Any, Sam], embeddings: Tensor) -> None:
    reference, _ = pair
    with torch.no_grad():
        for i, (height, width) in enumerate(SIZES_HW.tolist()):
            cropped = images()[i, :, :height, :width].float()
            assert close(embeddings[i : i + 1], reference.image_encoder(reference.preprocess(cropped)[None]))


@pytest.mark.usefixtures("image_token_form")
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("kind", ["one point", "three points", "box", "box and two points"])
def test_masks_and_scores_of_prompts_over_two_images(
    pair: tuple[Any, Sam], embeddings: Tensor, kind: str, with_mask: bool, multimask_output: bool
) -> None:
    """One packed call of ours against one call a prompt of the reference."""
    reference, ours = pair
    image_index = torch.tensor([1, 0, 0, 1, 0])
    num_points = {"one point": 1, "three points": 3, "box": 0, "box and two points": 2}[kind]
    points, labels = torch.rand(5, num_points, 2) * SIZE, torch.randint(0, 2, (5, num_points))
    corners = torch.rand(5, 2, 2).sort(1).values.flatten(1) * SIZE
    masks = torch.randn(5, 1, SIZE // 4, SIZE // 4) * 5 if with_mask else None
    has_box = kind.startswith("box")
    if has_box:
        prompts = Prompts.from_boxes(image_index, corners)
        for p in range(num_points):
            prompts = prompts.with_point(points[:, p], labels[:, p], None)
    else:
        prompts = Prompts.from_points(image_index, points, labels)
    if masks is not None:
        prompts = prompts.with_mask(masks)
    with torch.no_grad():
        answer = ours.decode(embeddings, prompts, multimask_output=multimask_output)
        for i, image in enumerate(image_index.tolist()):
            row = slice(i, i + 1)
            expected = reference_decode(
                reference,
                embeddings,
                image,
                points=(points[row], labels[row]) if num_points else None,
                boxes=corners[row] if has_box else None,
                masks=None if masks is None else masks[row],
                multimask_output=multimask_output,
            )
            assert close(answer.mask_logits[row], expected.mask_logits)
            assert close(answer.iou_scores[row], expected.iou_scores)


@pytest.mark.usefixtures("image_token_form")
def test_a_fed_back_mask(pair: tuple[Any, Sam], embeddings: Tensor) -> None:
    """Two rounds: click, then the best answer and a background click added, each side with its own first answer."""
    reference, ours = pair
    points, labels = torch.tensor([[[30.0, 45.0]]]), torch.tensor([[1]])
    second_xy, second_label = torch.tensor([[110.0, 31.0]]), torch.tensor([0])
    with torch.no_grad():
        prompts = Prompts.from_points(torch.tensor([1]), points, labels)
        first = ours.decode(embeddings, prompts, multimask_output=True).best()
        answer = ours.decode(embeddings, prompts.with_point(second_xy, second_label, first.mask_logits), multimask_output=False)
        expected_first = reference_decode(reference, embeddings, 1, points=(points, labels), multimask_output=True).best()
        both = torch.cat([points, second_xy[:, None]], 1), torch.cat([labels, second_label[:, None]], 1)
        expected = reference_decode(
            reference, embeddings, 1, points=both, masks=expected_first.mask_logits, multimask_output=False
        )
    assert close(first.mask_logits, expected_first.mask_logits)
    assert close(answer.mask_logits, expected.mask_logits)
    assert close(answer.iou_scores, expected.iou_scores)


@pytest.mark.usefixtures("image_token_form")
def test_gradients_of_the_prompt_encoder_and_decoder(pair: tuple[Any, Sam], embeddings: Tensor) -> None:
    """Every parameter's gradient, and that of the image embeddings, under a loss that weighs all outputs at random."""
    reference, ours = pair
    points, labels = torch.rand(3, 2, 2) * SIZE, torch.tensor([[1, 0], [1, 1], [0, 1]])
    masks = torch.randn(3, 1, SIZE // 4, SIZE // 4)
    weights, iou_weights = torch.randn(3, 3, SIZE // 4, SIZE // 4), torch.randn(3, 3) * 100
    grads = []
    for model in (reference, ours):
        model.zero_grad()
        leaf = embeddings.clone().requires_grad_()
        if model is ours:
            prompts = Prompts.from_points(torch.zeros(3, dtype=torch.long), points, labels).with_mask(masks)
            answer = ours.decode(leaf, prompts, multimask_output=True)
        else:
            answer = reference_decode(reference, leaf, 0, points=(points, labels), masks=masks, multimask_output=True)
        ((answer.mask_logits * weights).sum() + (answer.iou_scores * iou_weights).sum()).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        grads.append(found | {"embeddings": leaf.grad})
        model.zero_grad()
    expected, actual = grads
    compared = [name for name in expected if expected[name].abs().max() > 0]
    assert sum(name.startswith("mask_decoder.") for name in compared) > 80
    for name in compared:
        scale = expected[name].abs().max()
        if name.endswith("k_proj.bias"):  # softmax does not see it: rounding on their side, nothing at all on ours
            assert scale < 1e-3 * expected[name.replace("bias", "weight")].abs().max()
            continue
        assert (actual[name] - expected[name]).abs().max() <= 1e-3 * scale, name


def test_state_dict_keys_are_the_released_ones() -> None:
    """Use the depth, heads and window of vit_b, narrow and small to keep the test fast."""
    numbers: dict[str, Any] = {
        "embed_dim": 24,
        "depth": 12,
        "num_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11],
        "window_size": 14,
    }
    expected = reference_sam(image_size=256, **numbers).state_dict()
    actual = build_sam(image_size=256, **numbers).state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    assert len(actual) == 314  # what sam_vit_b_01ec64.pth holds
