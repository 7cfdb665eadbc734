"""Comparison of a model with what its written file was read back as."""

from __future__ import annotations

import torch
from torch import Tensor

from sam_train.errors import CheckpointError
from sam_train.model import Sam
from sam_train.structures import Prediction, Prompts

TOLERANCE = 1e-4
"""Largest difference of logits and scores, relative to the model's largest value or to 1 if that is smaller."""
HALF_TOLERANCE = 5e-2
"""The same with weights that were rounded to float16, as for the ONNX decoder of that precision."""


@torch.inference_mode()
def check_same_predictions(loaded: Sam, model: Sam, *, tolerance: float, origin: str) -> float:
    """Return the largest relative difference of the predictions of two models for clicks and a box on a noise image.

    origin: the file from which `loaded` was read, with which messages begin.
    Raises CheckpointError if the difference exceeds `tolerance`, or if the models work at different image sizes.
    """
    if loaded.image_size != model.image_size:
        raise CheckpointError(
            f"{origin} would be read back as a model of image_size {loaded.image_size}, but the model has {model.image_size}: "
            "this format cannot hold it; use format=safetensors or format=pt"
        )
    expected, actual = (_predict(sam) for sam in (model, loaded))
    pairs = [(a.mask_logits, e.mask_logits) for a, e in zip(actual, expected, strict=True)]
    pairs += [(a.iou_scores, e.iou_scores) for a, e in zip(actual, expected, strict=True)]
    difference = max(_relative_difference(a, e) for a, e in pairs)
    if not difference <= tolerance:
        raise CheckpointError(
            f"{origin}, read back, predicts otherwise than the model: the difference is {difference:.2g} of the largest value, "
            f"expected at most {tolerance:.2g}; this format cannot hold the model: use format=safetensors or format=pt"
        )
    return difference


def _predict(model: Sam) -> list[Prediction]:
    training = model.training
    model.eval()
    try:
        size, device = model.image_size, model.pixel_mean.device
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8).to(device)
        embedding = model.encode_images(image, torch.tensor([[size, size * 2 // 3]], device=device))
        points = torch.tensor([[[0.3, 0.4], [0.5, 0.2]], [[0.1, 0.9], [0.6, 0.6]]], device=device) * size
        index, labels = torch.zeros(2, dtype=torch.long, device=device), torch.tensor([[1, 0], [1, 1]], device=device)
        box = torch.tensor([[0.1, 0.2, 0.5, 0.8]], device=device) * size
        return [
            *(model.decode(embedding, Prompts.from_points(index, points, labels), multimask_output=m) for m in (False, True)),
            model.decode(embedding, Prompts.from_boxes(index[:1], box), multimask_output=False),
        ]
    finally:
        model.train(training)


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual.cpu() - expected.cpu()).abs().max() / expected.abs().max().cpu().clamp(min=1))
