"""Inference with a trained or released model.

`Predictor` segments objects by prompts, `AutomaticMaskGenerator` everything in an image; both have the interface of the released
classes. The data engine segments without an annotator by a grid of points (`GridMaskGenerator`), the boxes of a proposer
(`BoxMaskGenerator`) or text prompts (`TextMaskGenerator`).
"""

from __future__ import annotations

from os import PathLike

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
from sam_train.inference.grid_mask_generator import GridMaskGenerator
from sam_train.inference.packed_predictor import PackedPredictor
from sam_train.inference.predictor import Predictor
from sam_train.inference.predictor_protocol import PredictorLike
from sam_train.inference.prompt_arrays import click_prompts, make_prompts
from sam_train.inference.text_mask_generator import TextMaskGenerator

__all__ = [
    "AutomaticMaskGenerator",
    "BoxMaskGenerator",
    "EmbeddingCache",
    "EmbeddingMaskGenerator",
    "GeneratedMask",
    "GridMaskGenerator",
    "MaskGenerator",
    "MaskOrigin",
    "PackedPredictor",
    "Predictor",
    "PredictorLike",
    "TextMaskGenerator",
    "click_prompts",
    "generate_masks",
    "load_predictor",
    "make_prompts",
]


def load_predictor(path: str | PathLike[str], device: str | torch.device = "cpu") -> Predictor:
    """Load a checkpoint and return a predictor with its model in eval mode.

    path: a run (its folder, model.pt or .ckpt), released weights (.pth, .safetensors, a Hugging Face folder), or a name such as
        "starter" or "mobile_sam", which is downloaded on first use.
    device: "cpu", "cuda", "cuda:1" and so on; "auto" is the first of cuda, mps and cpu that is available.

    Raises CheckpointError if `path` is none of these, and ConfigError if the device is not available.

    Example:

        predictor = load_predictor("model.pt", "auto")
        predictor.set_image("photo.jpg")
        masks, scores, logits = predictor.predict(box=[10, 20, 200, 300], multimask_output=False)  # masks: 1 x H x W bool
    """
    return Predictor(load_checkpoint(path, device))
