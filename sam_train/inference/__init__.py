"""The public door for using a model: `Predictor` for prompts, `AutomaticMaskGenerator` for everything,
`BoxMaskGenerator` for what a proposer is sure of, `TextMaskGenerator` for a list of words."""

from __future__ import annotations

from pathlib import Path

import torch

from sam_train.checkpoint import load_checkpoint
from sam_train.inference.automatic import AutomaticMaskGenerator
from sam_train.inference.box_mask_generator import BoxMaskGenerator
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.generator_types import EmbeddingMaskGenerator, GeneratedMask, MaskGenerator, generate_masks
from sam_train.inference.predictor import Predictor
from sam_train.inference.text_mask_generator import TextMaskGenerator

__all__ = [
    "AutomaticMaskGenerator",
    "BoxMaskGenerator",
    "EmbeddingCache",
    "EmbeddingMaskGenerator",
    "GeneratedMask",
    "MaskGenerator",
    "Predictor",
    "TextMaskGenerator",
    "generate_masks",
    "load_predictor",
]


def load_predictor(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A predictor with the model of a checkpoint: ours, or released weights of SAM, MobileSAM or Hugging Face's SamModel.

    Raises CheckpointError when `path` is none of these, ConfigError for a device that is not there.
    """
    return Predictor(load_checkpoint(Path(path), device))
