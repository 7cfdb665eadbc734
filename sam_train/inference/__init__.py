"""The public door for using a model: `Predictor` for prompts, `AutomaticMaskGenerator` for everything."""

from __future__ import annotations

from pathlib import Path

import torch

from sam_train.checkpoint import load_checkpoint
from sam_train.inference.automatic import AutomaticMaskGenerator, GeneratedMask
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.predictor import Predictor

__all__ = ["AutomaticMaskGenerator", "EmbeddingCache", "GeneratedMask", "Predictor", "load_predictor"]


def load_predictor(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A predictor with the model of a checkpoint: ours, or released weights of SAM, MobileSAM or Hugging Face's SamModel.

    Raises CheckpointError when `path` is none of these, ConfigError for a device that is not there.
    """
    return Predictor(load_checkpoint(Path(path), device))
