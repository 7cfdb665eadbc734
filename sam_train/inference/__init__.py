"""Inference with a trained or released model.

`Predictor` segments objects by prompts; `AutomaticMaskGenerator`, `BoxMaskGenerator` and `TextMaskGenerator` segment without
an annotator, by a grid of points, the boxes of a proposer, or text prompts.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sam_train.checkpoint import load_checkpoint
from sam_train.inference.automatic import AutomaticMaskGenerator
from sam_train.inference.box_mask_generator import BoxMaskGenerator
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.generator_types import (
    EmbeddingMaskGenerator,
    GeneratedMask,
    MaskGenerator,
    MaskOrigin,
    generate_masks,
)
from sam_train.inference.predictor import Predictor, PredictorLike
from sam_train.inference.prompt_arrays import click_prompts, make_prompts
from sam_train.inference.text_mask_generator import TextMaskGenerator

__all__ = [
    "AutomaticMaskGenerator",
    "BoxMaskGenerator",
    "EmbeddingCache",
    "EmbeddingMaskGenerator",
    "GeneratedMask",
    "MaskGenerator",
    "MaskOrigin",
    "Predictor",
    "PredictorLike",
    "TextMaskGenerator",
    "click_prompts",
    "generate_masks",
    "load_predictor",
    "make_prompts",
]


def load_predictor(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Load a checkpoint and return a predictor with its model in eval mode.

    path: model.pt of a run, or released weights of SAM, MobileSAM (.pth, .safetensors) or of Hugging Face's SamModel (a folder).
    device: "cpu", "cuda", "cuda:1" and so on.

    Raises CheckpointError if `path` is none of these, and ConfigError if the device is not available.

    Example:

        predictor = load_predictor("model.pt", "cuda")
        predictor.set_image(image)  # H x W x 3 uint8 RGB
        prediction = predictor.predict(make_prompts(boxes_xyxy=boxes, device=predictor.device), multimask_output=False)
        masks = predictor.masks_to_image(prediction.mask_logits)  # N x 1 x H x W bool
    """
    return Predictor(load_checkpoint(path, device))
