"""The names of the package segment_anything (and mobile_sam): a script that uses it changes this import line only.

    from sam_train.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

docs/api.md lists what is equal and what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from sam_train.checkpoint import load_checkpoint
from sam_train.config import build, config_dir
from sam_train.inference import AutomaticMaskGenerator as SamAutomaticMaskGenerator
from sam_train.inference import Predictor
from sam_train.model import Sam
from sam_train.model.tiny_vit import TinyViT

__all__ = ["SamAutomaticMaskGenerator", "SamPredictor", "sam_model_registry"]

_CONFIGS = {"default": "vit_h", "vit_h": "vit_h", "vit_l": "vit_l", "vit_b": "vit_b", "vit_t": "mobile_sam"}


class SamPredictor(Predictor):
    """`Predictor` that resizes images as the released one does, with which released weights were trained: its masks are equal."""

    def __init__(self, sam_model: Sam) -> None:
        super().__init__(sam_model, resampling="bilinear")


def _build(name: str, checkpoint: str | PathLike[str] | None = None) -> Sam:
    """Return the model of a checkpoint or, without one, a model with random weights; in eval mode on the CPU.

    Raises ValueError if the checkpoint holds a model with another image encoder, and what `load_checkpoint` raises.
    """
    config = cast(DictConfig, OmegaConf.load(Path(config_dir()) / "model" / f"{_CONFIGS[name]}.yaml"))
    if checkpoint is None:
        model: Sam = build(config)
        return model.eval()
    model = load_checkpoint(checkpoint)
    encoder, expected = model.image_encoder, config.get("embed_dim", "TinyViT")
    found = "TinyViT" if isinstance(encoder, TinyViT) else encoder.pos_embed.shape[-1]
    if found != expected:
        raise ValueError(f"{checkpoint} is not a {name}: its image encoder has width {found}, expected {expected}")
    return model


sam_model_registry: Mapping[str, Callable[..., Sam]] = {name: partial(_build, name) for name in _CONFIGS}
"""Functions `(checkpoint=None) -> Sam` by model type: default, vit_h, vit_l, vit_b, vit_t (MobileSAM)."""
