"""The predictor speaks the image frame: prompts are scaled in, masks out, and nothing else happens to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam_train.inference import Predictor
from sam_train.inference.predictor import clicks
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


@pytest.mark.parametrize("function", ["predict", "logits_in_image", "masks_in_image"])
def test_without_an_image_it_says_so(model: Sam, function: str) -> None:
    predictor = Predictor(model)
    call = getattr(predictor, function)
    arguments = {"prompts": clicks(torch.zeros(1, 2)), "multimask_output": True} if function == "predict" else {}
    logits = () if arguments else (torch.zeros(1, 1, 16, 16),)
    with pytest.raises(ValueError, match="no image: call set_image first"):
        call(*logits, **arguments)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8)],
)
def test_another_array_than_an_rgb_image_is_named(model: Sam, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"got shape .*{image.shape[-1]}\\) of {image.dtype}"):
        Predictor(model).set_image(image)


def test_it_is_the_model_with_the_frames_changed(model: Sam) -> None:
    """An image of 64 x 48 needs no resizing, only padding: everything can be done by hand."""
    image = noise(48, 64)
    predictor = Predictor(model.train())
    assert not model.training
    predictor.set_image(image)
    points = torch.tensor([[10.0, 20.0], [50.0, 40.0]])
    answer = predictor.predict(clicks(points), multimask_output=True)
    padded = torch.full((1, 3, 64, 64), 99, dtype=torch.uint8)
    padded[0, :, :48] = torch.from_numpy(image).permute(2, 0, 1)
    with torch.no_grad():
        embeddings = model.encode_images(padded, torch.tensor([[48, 64]]))
        prompts = Prompts.from_points(torch.zeros(2, dtype=torch.long), points[:, None], torch.ones(2, 1, dtype=torch.long))
        expected = model.decode(embeddings, prompts, multimask_output=True)
    assert torch.equal(answer.mask_logits, expected.mask_logits)
    assert torch.equal(answer.iou_scores, expected.iou_scores)
    logits = predictor.logits_in_image(answer.mask_logits)
    assert logits.shape == (2, 3, 48, 64)
    assert torch.equal(predictor.masks_in_image(answer.mask_logits), logits > 0)


def test_points_are_scaled_into_the_model_frame(model: Sam) -> None:
    """The same picture at twice the size, prompts at twice the place: the same answer."""
    picture = noise(48, 64)
    answers = []
    for scale in (2, 4):
        image = np.repeat(np.repeat(picture, scale, 0), scale, 1)
        predictor = Predictor(model)
        predictor.set_image(image)
        box = Prompts.from_boxes(torch.zeros(1, dtype=torch.long), torch.tensor([[4.0, 6, 50, 45]]) * scale)
        answers.append(predictor.predict(box, multimask_output=False))
        assert predictor.masks_in_image(answers[-1].mask_logits).shape[2:] == image.shape[:2]
    assert torch.allclose(answers[0].mask_logits, answers[1].mask_logits, atol=1e-4)


def test_the_last_image_counts(model: Sam) -> None:
    predictor = Predictor(model)
    answers = []
    for image in (noise(64, 64), noise(32, 64), noise(64, 64)):
        predictor.set_image(image)
        answers.append(predictor.predict(clicks(torch.tensor([[5.0, 5.0]])), multimask_output=False).mask_logits)
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_no_gradients_are_kept(model: Sam) -> None:
    predictor = Predictor(model)
    predictor.set_image(noise(20, 20))
    answer = predictor.predict(clicks(torch.tensor([[5.0, 5.0]])), multimask_output=False)
    assert not answer.mask_logits.requires_grad
    assert not predictor.logits_in_image(answer.mask_logits).requires_grad
