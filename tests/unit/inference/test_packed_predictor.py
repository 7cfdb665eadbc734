"""Packed prompts: lists of unequal prompts, masks in chunks and as RLEs, mask prompts from masks, precision and devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_sam
from measurement import measure_memory

from sam_train.geometry import Resize
from sam_train.inference import Predictor, make_prompts
from sam_train.inference.mask_upsampling import encode_rles, upsample_masks
from sam_train.model import Sam
from sam_train.rle import encode_rle
from sam_train.structures import Prompts

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def predictor() -> Predictor:
    predictor = Predictor(small_sam())
    predictor.set_image_batch([IMAGE, IMAGE[::-1].copy()])
    return predictor


def unequal_prompts() -> list[Prompts]:
    mask = torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8)
    return [
        make_prompts(points_xy=[[5, 6]], image_index=[1]),
        make_prompts(points_xy=[[[5, 6], [20, 11]]], point_labels=[[1, 0]]),
        make_prompts(boxes_xyxy=[[2, 3, 18, 15], [1, 1, 9, 9]], image_index=[1, 0]),
        make_prompts(points_xy=[[9, 9]], mask_logits=mask),
        make_prompts(points_xy=[[3, 4], [25, 2]], image_index=[0, 1]),
    ]


def test_a_list_of_unequal_prompts_equals_single_ones(predictor: Predictor) -> None:
    prompts = unequal_prompts()
    together = predictor.predict_prompts(prompts, multimask_output=True)
    singles = [predictor.predict_prompts(part[i : i + 1], multimask_output=True) for part in prompts for i in range(len(part))]
    assert len(together.iou_scores) == len(singles) == 7
    for i, single in enumerate(singles):
        assert torch.allclose(together.mask_logits[i], single.mask_logits[0], atol=1e-5)
        assert torch.allclose(together.iou_scores[i], single.iou_scores[0], atol=1e-5)


def test_a_padding_point_would_change_a_prediction(predictor: Predictor) -> None:
    """The reason for which unequal prompts are grouped instead of padded."""
    prompt, padded = make_prompts(points_xy=[[5, 6]]), make_prompts(points_xy=[[[5, 6], [0, 0]]], point_labels=[[1, -1]])
    logits = [predictor.predict_prompts(p, multimask_output=True).mask_logits for p in (prompt, padded)]
    assert not torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 30), (64, 48), (1, 70)])
def test_masks_in_chunks_and_rles_equal_full_size_logits(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    resize = Resize(*size, 32)
    logits = torch.randn(3, 2, 8, 8)
    logits[1, 0] = -5
    expected = resize.logits_to_image(logits) > 0
    for pixels in (1, 1 << 12, 1 << 24):
        monkeypatch.setattr("sam_train.inference.mask_upsampling.PIXELS_PER_CHUNK", pixels)
        assert torch.equal(upsample_masks(logits, resize), expected)
    assert encode_rles(logits, resize) == [[encode_rle(mask.numpy()) for mask in masks] for masks in expected]
    assert upsample_masks(logits[:0], resize).shape == (0, 2, *size)
    assert encode_rles(logits[:0], resize) == []


def test_masks_of_a_large_image_need_little_more_memory_than_themselves() -> None:
    resize, logits = Resize(1500, 2000, 32), torch.randn(40, 1, 8, 8)
    results: list[torch.Tensor] = []
    used_mb, _ = measure_memory(lambda: results.append(upsample_masks(logits, resize)))
    assert results[0].shape == (40, 1, 1500, 2000)
    assert used_mb < 120 + 250  # 480 MB of logits at the size of the image would not fit


def test_a_mask_becomes_a_mask_prompt(predictor: Predictor) -> None:
    predictor.set_image(IMAGE)
    mask = np.zeros((20, 30), bool)
    mask[3:14, 8:22] = True
    logits = predictor.mask_to_logits(mask)
    assert (logits.shape, logits.dtype, float(logits.min())) == ((1, 8, 8), np.float32, -10.0)
    again = predictor.masks_to_image(torch.from_numpy(logits)[None])[0, 0].numpy()
    assert (again & mask).sum() / (again | mask).sum() > 0.75  # to within a cell, which is nearly 4 x 4 pixels
    assert np.array_equal(predictor.mask_to_logits(mask.astype(np.uint8)), logits)
    with_mask = predictor.predict([[10, 10]], [1], mask_input=logits)[2]
    assert not np.allclose(with_mask, predictor.predict([[10, 10]], [1])[2])
    assert (predictor.mask_to_logits(np.ones((20, 30), bool))[0, -1] == -10).all(), "the padding is background"


def test_a_bfloat16_model_takes_every_prompt() -> None:
    torch.manual_seed(0)
    full, half = small_sam().eval(), small_sam().eval()
    half.load_state_dict(full.state_dict())
    results = []
    for model in (full, half.to(torch.bfloat16)):
        predictor = Predictor(model)
        predictor.set_image(IMAGE)
        logits = predictor.predict(box=[2, 3, 18, 15], multimask_output=False)[2]
        results.append(predictor.predict([[10, 10]], [1], mask_input=logits, return_logits=True))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded.dtype, rounded.shape) == (np.float32, exact.shape)
        assert np.abs(rounded - exact).max() < 0.1 * max(1.0, np.abs(exact).max())


def test_prompts_are_moved_to_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
    moved: list[torch.device | str] = []
    to = Prompts.to
    monkeypatch.setattr(Prompts, "to", lambda self, device: moved.append(device) or to(self, device))
    predictor.predict_prompts(unequal_prompts()[0], multimask_output=True)
    assert torch.device("cpu") in moved


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prompts_of_the_cpu_on_a_gpu() -> None:
    model: Sam = small_sam().eval()
    on_cpu = Predictor(model)
    on_cpu.set_image(IMAGE)
    expected = on_cpu.predict_prompts(make_prompts(points_xy=[[5, 6]]), multimask_output=True)
    on_gpu = Predictor(model.to("cuda"))
    on_gpu.set_image(IMAGE)
    found = on_gpu.predict_prompts(make_prompts(points_xy=[[5, 6]]), multimask_output=True)
    assert found.mask_logits.device.type == "cuda"
    assert torch.allclose(found.mask_logits.cpu(), expected.mask_logits, atol=1e-3)
    assert on_gpu.masks_to_rles(found.mask_logits) == [[encode_rle(m) for m in on_gpu.predict([[5, 6]], [1])[0]]]
