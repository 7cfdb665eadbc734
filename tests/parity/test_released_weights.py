"""MobileSAM's released weights: masks equal those of segment-anything's decoder and cover the clicked objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference_models import reference_mask_decoder, reference_prompt_encoder
from torch import Tensor

from sam_train.inference import Predictor, load_predictor
from sam_train.structures import Prompts

LARGEST_DISAGREEMENT = 1e-4


@pytest.fixture(scope="module")
def checkpoint(shared_dir: Path) -> Path:
    return shared_dir / "weights" / "mobile_sam" / "mobile_sam.pth"


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return load_predictor(checkpoint)


@pytest.fixture(scope="module")
def on_dog(predictor: Predictor, shared_dir: Path) -> Predictor:
    """Return a separate predictor whose image no other test changes."""
    own = Predictor(predictor.model)
    own.set_image(load_image(shared_dir, "dog.jpg"))
    return own


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> tuple[Any, Any]:
    """segment-anything's prompt encoder and mask decoder with the released weights."""
    parts = reference_prompt_encoder(), reference_mask_decoder()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for part, prefix in zip(parts, ("prompt_encoder.", "mask_decoder."), strict=True):
        part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
    return parts


def load_image(shared_dir: Path, name: str) -> np.ndarray:
    image = cv2.imread(str(shared_dir / "data" / "sam_examples" / name))
    return np.ascontiguousarray(image[:, :, ::-1])


def ten_prompts(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Five points and five boxes (N x 2 and N x 4, image frame) spread over the image."""
    generator = torch.Generator().manual_seed(height * width)
    size = torch.tensor([width, height])
    points = (0.1 + 0.8 * torch.rand(5, 2, generator=generator)) * size
    centres, sides = torch.rand(5, 2, generator=generator) * size, (0.1 + 0.4 * torch.rand(5, 2, generator=generator)) * size
    return points, torch.cat([(centres - sides / 2).clamp_min(0), torch.minimum(centres + sides / 2, size - 1)], 1)


def disagreement(predictor: Predictor, reference: tuple[Any, Any], prompts: Prompts, **parts: Any) -> tuple[float, float]:
    """The share of pixels whose masks differ, and the largest difference of a score, over three masks each prompt."""
    prompt_encoder, decoder = reference
    embedding = predictor.get_image_embedding()
    with torch.inference_mode():
        sparse, dense = prompt_encoder(**({"points": None, "boxes": None, "masks": None} | parts))
        logits, scores = decoder(
            image_embeddings=embedding,
            image_pe=prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        answer = predictor.predict_prompts(prompts, multimask_output=True)
        differs = predictor.masks_to_image(answer.mask_logits) != predictor.masks_to_image(logits)
    return differs.float().mean().item(), (answer.iou_scores - scores).abs().max().item()


def test_masks_of_ten_prompts_equal_the_reference(on_dog: Predictor, reference: tuple[Any, Any]) -> None:
    check_ten_prompts(on_dog, reference, "dog.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cars.jpg", "groceries.jpg", "truck.jpg"])
def test_masks_of_more_images(shared_dir: Path, predictor: Predictor, reference: tuple[Any, Any], name: str) -> None:
    predictor.set_image(load_image(shared_dir, name))
    check_ten_prompts(predictor, reference, name)


def check_ten_prompts(predictor: Predictor, reference: tuple[Any, Any], name: str) -> None:
    points, boxes = ten_prompts(*predictor.original_size)
    index, labels = torch.zeros(5, dtype=torch.long), torch.ones(5, 1, dtype=torch.long)
    to_model = predictor.images.resizes[0].points_to_model
    clicks = Prompts.from_points(index, points[:, None], labels)
    of_points = disagreement(predictor, reference, clicks, points=(to_model(points)[:, None], labels))
    of_boxes = disagreement(
        predictor, reference, Prompts.from_boxes(index, boxes), boxes=to_model(boxes.view(-1, 2, 2)).view(-1, 4)
    )
    print(f"{name}: {of_points[0]:.2e} of the pixels of clicks and {of_boxes[0]:.2e} of boxes differ")
    assert max(of_points[0], of_boxes[0]) <= LARGEST_DISAGREEMENT
    assert max(of_points[1], of_boxes[1]) < 1e-4


def test_a_click_on_the_dog_is_the_dog(on_dog: Predictor) -> None:
    click = Prompts.from_points(
        torch.zeros(1, dtype=torch.long), torch.tensor([[[300.0, 400.0]]]), torch.ones(1, 1, dtype=torch.long)
    )
    best = on_dog.predict_prompts(click, multimask_output=True).best()
    mask = on_dog.masks_to_image(best.mask_logits)[0, 0]
    assert best.iou_scores.item() > 0.95
    assert 0.16 < mask.float().mean().item() < 0.19
    dog, not_dog = [(100, 500), (240, 300), (350, 350)], [(550, 220), (600, 480), (150, 100)]
    assert all(mask[y, x] for x, y in dog)
    assert not any(mask[y, x] for x, y in not_dog)
