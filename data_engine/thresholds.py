"""The thresholds of a mask generator that its checkpoint carries."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from sam_train.checkpoint import read_checkpoint
from sam_train.inference.grid_mask_generator import PAPER_THRESHOLDS, THRESHOLDS_KEY, checked_thresholds


def with_checkpoint_thresholds(cfg: DictConfig) -> DictConfig:
    """Return the engine's config in which the generator's thresholds that are null have the values of the checkpoint.

    A checkpoint without thresholds has the paper's. The result depends on the content of the checkpoint only, so it is hashed and
    stored like thresholds that were given. Raises CheckpointError if the checkpoint cannot be read or carries other values.
    """
    generator = cfg.stage.get("generator") or {}
    missing = [key for key in PAPER_THRESHOLDS if key in generator and generator[key] is None]
    if not missing:
        return cfg
    stored = read_checkpoint(cfg.checkpoint).provenance.get(THRESHOLDS_KEY) if cfg.checkpoint else None
    carried = checked_thresholds(stored or {}, origin=str(cfg.checkpoint))
    thresholds = {key: carried.get(key, PAPER_THRESHOLDS[key]) for key in missing}
    return OmegaConf.merge(cfg, {"stage": {"generator": thresholds}})  # type: ignore[return-value]
