"""Checks of `trainer.*`, `monitor` and the callbacks before a run starts, and messages for what Lightning raises during one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from sam_train.config import to_plain
from sam_train.errors import ConfigError

REPLACED = {
    "strategy": "set strategy= to a name of configs/strategy",  # Lightning's own reduce gradients in each backward pass
    "accumulate_grad_batches": "set data.images_per_step, and training.images_per_pass for what fits into the memory",
    "gradient_clip_val": "set training.gradient_clip",
    "gradient_clip_algorithm": "set training.gradient_clip, the largest norm of the gradient",
    "fast_dev_run": "use debug=one_batch",
    "overfit_batches": "use debug=overfit",
    "logger": "set logger=",
    "callbacks": "add +callbacks.NAME={_target_: ...}",
    "enable_checkpointing": "set checkpoint_every_n_steps",
    "max_epochs": "set trainer.max_steps",
}
"""Arguments of Lightning's Trainer that a run does not support, and what to set instead."""

_ALLOWED = {"max_epochs": (1, -1), "accumulate_grad_batches": (1,), "gradient_clip_val": (None,), "fast_dev_run": (False,)}


def check_trainer_options(cfg: DictConfig) -> None:
    """Raise ConfigError for an option of the trainer that this project does not support, or that has no effect."""
    trainer = to_plain(cfg.trainer)
    for name, remedy in REPLACED.items():
        if name in trainer and trainer[name] not in _ALLOWED.get(name, ()):
            raise ConfigError(f"trainer.{name} is {trainer[name]}, which is not supported: {remedy} instead")
    precision = str(trainer["precision"])
    if precision in ("16", "16-mixed"):  # a loss scaler would scale the encoder's gradient twice
        raise ConfigError(f"trainer.precision is {precision}: loss scaling is not supported, set trainer.precision=bf16-mixed")
    if precision in ("bf16-true", "16-true", "64-true", "transformer-engine"):
        remedy = "set trainer.precision=bf16-mixed or 32-true"
        raise ConfigError(f"trainer.precision is {precision}: the weights of a run are in 32 bits, {remedy}")
    if not isinstance(trainer["max_steps"], int) or trainer["max_steps"] < 1:
        raise ConfigError(
            f"trainer.max_steps is {trainer['max_steps']}: set it to the number of steps, the schedule depends on it"
        )
    _check_validation(cfg)


def _check_validation(cfg: DictConfig) -> None:
    """Raise ConfigError for what needs validation shards, if there are none."""
    if cfg.data.get("val_shards"):
        return
    for name in ("monitor", "patience"):
        if cfg.get(name) not in (None, "auto"):
            raise ConfigError(f"{name}={cfg[name]} needs a validation: give data.val_shards=SHARDS")
    for name, callback in to_plain(cfg.get("callbacks") or {}).items():
        monitor = str((callback or {}).get("monitor", ""))
        if monitor.startswith("val/") or ((callback or {}).get("_target_", "").endswith("EarlyStopping") and not monitor):
            raise ConfigError(f"callbacks.{name} watches {monitor or 'a metric'}, which needs data.val_shards=SHARDS")


@contextmanager
def explain_fit_errors() -> Iterator[None]:
    """Convert what Lightning and torch raise during a run for a wrong config into ConfigError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "lower data.images_per_step or data.max_masks, or set +model.activation_checkpointing=torch"
        raise ConfigError(f"the accelerator ran out of memory in a training step: {remedy}") from error
    except MisconfigurationException as error:
        raise ConfigError(f"invalid values in the config group trainer or callbacks: {error}") from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise ConfigError(f"the monitor of a callback is not a metric of this run: {error}") from error
