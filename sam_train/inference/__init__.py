"""The public door for using a model: `Predictor` for prompts, `AutomaticMaskGenerator` for everything,
`ProposedMasks` for what a proposer is sure of, `WordMasks` for a list of words."""

from __future__ import annotations

from pathlib import Path

import torch

from sam_train.checkpoint import load_checkpoint
from sam_train.inference.automatic import AutomaticMaskGenerator
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.generated import EmbeddingReader, GeneratedMask, MaskMaker, masks_of
from sam_train.inference.predictor import Predictor
from sam_train.inference.proposing import ProposedMasks
from sam_train.inference.words import WordMasks

__all__ = [
    "AutomaticMaskGenerator",
    "EmbeddingCache",
    "EmbeddingReader",
    "GeneratedMask",
    "MaskMaker",
    "Predictor",
    "ProposedMasks",
    "WordMasks",
    "load_predictor",
    "masks_of",
]


def load_predictor(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A predictor with the model of a checkpoint: ours, or released weights of SAM, MobileSAM or Hugging Face's SamModel.

    Raises CheckpointError when `path` is none of these, ConfigError for a device that is not there.
    """
    return Predictor(load_checkpoint(Path(path), device))
