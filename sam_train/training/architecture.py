"""The architecture of a run that starts from a checkpoint: that of the checkpoint, unless `model=` names one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from sam_train.checkpoint.reading import full_model, is_image_encoder_only, read_stored_weights
from sam_train.config import resolve_target, to_plain
from sam_train.errors import ConfigError
from sam_train.training.continuation import command_line_overrides, last_checkpoint
from sam_train.training.step_module import log_rank_zero

FREE_KEYS = ("drop_path_rate", "decoder_dropout", "activation_checkpointing", "freeze_batch_norm", "text_dim", "text_encoder")
"""Keys of a model config that the weights of a checkpoint do not decide."""
CHOOSABLE_KEYS = ("iou_sigmoid", "iou_from_masks", "pixel_statistics")
"""Keys that are taken from the checkpoint unless `model=` or `experiment=` chooses a model: these may set another value."""
_TINY_VIT = "sam_train.model.build.build_mobile_sam"
"""Builder of models whose weights do not depend on the image size either."""


def with_checkpoint_architecture(cfg: DictConfig) -> DictConfig:
    """Return the config with the architecture of `init_checkpoint`, or of the run that `resume_from` names.

    It is `cfg` itself without such a checkpoint, for a masked auto-encoder, which has no mask decoder, and if the architectures
    are equal. Overrides `model.KEY=VALUE` of the command line are applied to the checkpoint's architecture.
    Raises ConfigError if the command line chooses another architecture by `model=`, CheckpointError for an unreadable checkpoint.
    """
    source: str | Path | None = last_checkpoint(cfg.resume_from) if cfg.resume_from else cfg.init_checkpoint
    if not source:
        return cfg
    stored = read_stored_weights(source)
    if is_image_encoder_only(stored):
        return cfg
    config = full_model(stored).config
    changes = differences(config, to_plain(cfg.model))
    if not changes:
        return cfg
    overrides = command_line_overrides()
    decisive = {key: text for key, text in changes.items() if key not in CHOOSABLE_KEYS}
    if any(override.startswith("model=") for override in overrides):
        _refuse(source, decisive, overrides)
    if not decisive and any(override.startswith(("model=", "experiment=")) for override in overrides):
        return cfg
    resolved = deepcopy(cfg)
    with open_dict(resolved):
        resolved.model = config
        resolved.merge_with_dotlist([o.lstrip("+") for o in overrides if o.lstrip("+").startswith("model.")])
    log_rank_zero("the model has the architecture of %s", source)
    return resolved


def _refuse(source: str | Path, changes: Mapping[str, str], overrides: Sequence[str]) -> None:
    """Raise ConfigError if there are changes, with the overrides that cause them."""
    if changes:
        keys = ("model", *(f"model.{key}" for key in changes))
        chosen = " ".join(override for override in overrides if override.lstrip("+").partition("=")[0] in keys)
        remedy = f"leave out {chosen} to train the architecture of the checkpoint"
        raise ConfigError(f"{source} holds a model of another architecture: {', '.join(changes.values())}; {remedy}")


def differences(stored: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of two model configs whose values differ and decide what weights mean, each with a text."""
    before, now = _architecture(stored), _architecture(chosen)
    keys = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    return {key: f"{key} is {before.get(key)} in the checkpoint and {now.get(key)} here" for key in keys}


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model config with its builder's default values, without free keys."""
    target = config["_target_"]
    parameters = inspect.signature(resolve_target(target, ("sam_train.model",))).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)
    free = (*FREE_KEYS, "image_size") if target == _TINY_VIT else FREE_KEYS
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if key not in free}
