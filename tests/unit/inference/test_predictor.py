"""The predictor converts prompts from the image frame to the model frame, and masks back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_train.inference import Predictor
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.prompt_arrays import click_prompts, make_prompts
from sam_train.model import Sam
from sam_train.model.build import build_sam
from sam_train.structures import Prompts


@pytest.fixture
def model() -> Sam:
    return build_sam(
        image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=[0], prompt_dim=16, decoder_mlp_dim=16
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("function", ["predict_prompts", "logits_to_image", "masks_to_image", "stability_scores"])
def test_rejects_calls_before_set_image(model: Sam, function: str) -> None:
    predictor = Predictor(model)
    call = getattr(predictor, function)
    arguments = {"prompts": click_prompts(torch.zeros(1, 2)), "multimask_output": True} if function == "predict_prompts" else {}
    logits = () if arguments else (torch.zeros(1, 1, 16, 16),)
    with pytest.raises(RuntimeError, match="no image was set: call set_image first"):
        call(*logits, **arguments)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8)],
)
def test_rejects_arrays_that_are_not_rgb_images(model: Sam, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"got shape .*{image.shape[-1]}\\) of {image.dtype}"):
        Predictor(model).set_image(image)


def test_prediction_equals_the_models(model: Sam) -> None:
    """An image of 64 x 48 needs padding but no resizing, so that the expected values follow from the model directly."""
    image = noise(48, 64)
    predictor = Predictor(model.train())
    assert not model.training
    predictor.set_image(image)
    points = torch.tensor([[10.0, 20.0], [50.0, 40.0]])
    answer = predictor.predict_prompts(click_prompts(points), multimask_output=True)
    padded = torch.full((1, 3, 64, 64), 99, dtype=torch.uint8)
    padded[0, :, :48] = torch.from_numpy(image).permute(2, 0, 1)
    with torch.no_grad():
        embeddings = model.encode_images(padded, torch.tensor([[48, 64]]))
        prompts = Prompts.from_points(torch.zeros(2, dtype=torch.long), points[:, None], torch.ones(2, 1, dtype=torch.long))
        expected = model.decode(embeddings, prompts, multimask_output=True)
    assert torch.equal(answer.mask_logits, expected.mask_logits)
    assert torch.equal(answer.iou_scores, expected.iou_scores)
    logits = predictor.logits_to_image(answer.mask_logits)
    assert logits.shape == (2, 3, 48, 64)
    assert torch.equal(predictor.masks_to_image(answer.mask_logits), logits > 0)


def test_points_are_scaled_into_the_model_frame(model: Sam) -> None:
    """An image of twice the size with prompts at twice the coordinates has the same prediction."""
    small = noise(48, 64)
    answers = []
    for scale in (2, 4):
        image = np.repeat(np.repeat(small, scale, 0), scale, 1)
        predictor = Predictor(model)
        predictor.set_image(image)
        box = Prompts.from_boxes(torch.zeros(1, dtype=torch.long), torch.tensor([[4.0, 6, 50, 45]]) * scale)
        answers.append(predictor.predict_prompts(box, multimask_output=False))
        assert predictor.masks_to_image(answers[-1].mask_logits).shape[2:] == image.shape[:2]
    assert torch.allclose(answers[0].mask_logits, answers[1].mask_logits, atol=1e-4)


def test_predicts_on_the_last_image_set(model: Sam) -> None:
    predictor = Predictor(model)
    answers = []
    for image in (noise(64, 64), noise(32, 64), noise(64, 64)):
        predictor.set_image(image)
        answers.append(predictor.predict_prompts(click_prompts(torch.tensor([[5.0, 5.0]])), multimask_output=False).mask_logits)
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_keeps_no_gradients(model: Sam) -> None:
    predictor = Predictor(model)
    predictor.set_image(noise(20, 20))
    answer = predictor.predict_prompts(click_prompts(torch.tensor([[5.0, 5.0]])), multimask_output=False)
    assert not answer.mask_logits.requires_grad
    assert not predictor.logits_to_image(answer.mask_logits).requires_grad


def test_batch_of_images_equals_single_images(model: Sam) -> None:
    """Logits and masks of a batch equal those of single images, for prompts in any order of images."""
    images = [noise(48, 64), noise(100, 30), noise(64, 64)]
    index = torch.tensor([2, 0, 1, 0])
    points = torch.tensor([[60.0, 5.0], [10.0, 20.0], [25.0, 90.0], [50.0, 40.0]])
    together = Predictor(model)
    together.set_image_batch(images)
    answer = together.predict_prompts(make_prompts(points_xy=points, image_index=index), multimask_output=True)
    masks = together.masks_to_images(answer.mask_logits, index)
    assert [tuple(m.shape) for m in masks] == [(2, 3, 48, 64), (1, 3, 100, 30), (1, 3, 64, 64)]
    for i, image in enumerate(images):
        alone = Predictor(model)
        alone.set_image(image)
        expected = alone.predict_prompts(click_prompts(points[index == i]), multimask_output=True)
        assert torch.allclose(answer.mask_logits[index == i], expected.mask_logits, atol=1e-5)
        logits = together.logits_to_image(answer.mask_logits[index == i], i)
        assert torch.allclose(logits, alone.logits_to_image(expected.mask_logits), atol=1e-5)
        assert torch.equal(masks[i], logits > 0)


def test_rejects_image_index_out_of_range(model: Sam) -> None:
    predictor = Predictor(model)
    with pytest.raises(ValueError, match="at least one image"):
        predictor.set_image_batch([])
    predictor.set_image_batch([noise(20, 20), noise(30, 20)])
    with pytest.raises(ValueError, match="from 0 to 2, but 2 images were set"):
        predictor.predict_prompts(make_prompts(points_xy=np.zeros((2, 2)), image_index=np.array([0, 2])), multimask_output=True)
    with pytest.raises(RuntimeError, match="2 images were set: pass image_index"):
        predictor.masks_to_image(torch.zeros(1, 1, 16, 16))


def test_make_prompts_from_numpy_equals_tensors() -> None:
    points, labels = np.array([[[4.0, 6], [8, 9]], [[1, 2], [3, 4]]]), np.array([[1, 0], [1, 1]])
    boxes, masks, index = np.array([[1, 2, 30, 40], [5, 6, 7, 8]]), np.zeros((2, 1, 16, 16)), np.array([1, 0])
    parts = {"points_xy": points, "point_labels": labels, "boxes_xyxy": boxes, "mask_logits": masks, "image_index": index}
    ours, theirs = make_prompts(**parts), make_prompts(**{k: torch.from_numpy(v) for k, v in parts.items()})
    for name in ("image_index", "points_xy", "point_labels", "mask_logits"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert ours.point_labels.tolist() == [[2, 3, 1, 0], [2, 3, 1, 1]]
    assert ours.mask_logits is not None
    assert (ours.points_xy.dtype, ours.mask_logits.dtype) == (torch.float32, torch.float32)
    one = make_prompts(points_xy=points[:, 0])
    assert one.point_labels.tolist() == [[1, -1], [1, -1]]
    assert one.image_index.tolist() == [0, 0]


def test_make_prompts_rejects_missing_and_unequal_parts() -> None:
    with pytest.raises(ValueError, match="points_xy, boxes_xyxy or text_embeddings"):
        make_prompts(mask_logits=np.zeros((1, 1, 16, 16)))
    with pytest.raises(ValueError, match="'points_xy': 2, 'boxes_xyxy': 1"):
        make_prompts(points_xy=np.zeros((2, 2)), boxes_xyxy=np.zeros((1, 4)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cached_embedding_gives_the_same_prediction(
    model: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    images, encoded = [noise(48, 64), noise(20, 30)], []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels, sizes: encoded.append(len(pixels)) or encode(pixels, sizes))
    cache = EmbeddingCache(tmp_path, model, dtype=dtype)
    prompts = make_prompts(points_xy=np.array([[5.0, 5.0], [9.0, 7.0]]), image_index=np.array([1, 0]))
    answers = []
    for chosen in (images[:1], images, images):
        predictor = Predictor(model, cache)
        predictor.set_image_batch(chosen)
        if len(chosen) == 2:
            answers.append(predictor.predict_prompts(prompts, multimask_output=False).mask_logits)
    assert encoded == [1, 1]  # the first image, then only the one that was new
    assert torch.equal(answers[0], answers[1])
    plain = Predictor(model)
    plain.set_image_batch(images)
    expected = plain.predict_prompts(prompts, multimask_output=False).mask_logits
    assert torch.allclose(answers[0], expected, atol={"float32": 1e-5, "float16": 0.05, "bfloat16": 0.5}[dtype])


def test_rejects_a_cache_with_another_resampling(model: Sam, tmp_path: Path) -> None:
    """The cache identifies an image by its pixels alone."""
    with pytest.raises(ValueError, match="omit the cache with resampling='bilinear'"):
        Predictor(model, EmbeddingCache(tmp_path, model, dtype="float32"), resampling="bilinear")
    answers = []
    for resampling in ("area", "bilinear"):
        predictor = Predictor(model, resampling=resampling)
        predictor.set_image(noise(200, 200))
        answers.append(predictor.predict_prompts(click_prompts(torch.tensor([[50.0, 50.0]])), multimask_output=True).mask_logits)
    assert not torch.equal(*answers)
