"""Builds Lightning's trainer from a config: checkpoints, loggers, callbacks, strategy."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from sam_train.config import build, to_plain
from sam_train.errors import ConfigError
from sam_train.training.checkpoint_io import AtomicCheckpointIO
from sam_train.training.loggers import build_loggers
from sam_train.training.preemption import PreemptionCallback
from sam_train.training.progress import RunProgress
from sam_train.training.strategies import EncoderFSDP2Strategy
from sam_train.training.trainer_options import check_trainer_options

IGNORED_WARNINGS = (
    "Using ModelCheckpoint with manual optimization",  # intended: checkpoints are written after the step
    "Total length of `list` across ranks is zero",  # the config has no validation shards
    "The '.*_dataloader' does not have many workers",  # data.num_workers is the user's choice
    "Be aware that when using `ckpt_path`",  # checkpoint_every_n_steps may change
    ".*LeafSpec.* is deprecated",  # Lightning 2.6 with torch 2.13
    "None of the inputs have requires_grad",  # a checkpointed block under lora: fairscale adds an input that requires a gradient
    "The `srun` command is available",  # slurm/train.sbatch uses srun
)
"""Warnings of Lightning that need no action."""


def silence_lightning() -> None:
    """Silence Lightning's advertisements, the messages that each process repeats, and IGNORED_WARNINGS."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)


@contextmanager
def raise_as_config_error(group: str) -> Iterator[None]:
    """Convert the errors that a constructor raises for its arguments into ConfigError; `group` names the config group."""
    try:
        yield
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"invalid values in the config group {group}: {error}") from error


def build_trainer(cfg: DictConfig, run_dir: Path, *callbacks: Callback) -> Trainer:
    """Return Lightning's trainer for a config, with `callbacks` before those of the config.

    Raises ConfigError for options of the trainer that are not supported (`check_trainer_options`).
    """
    check_trainer_options(cfg)
    folder = run_dir / "checkpoints"
    all_callbacks: list[Callback] = [
        *callbacks,
        PreemptionCallback(folder / "last.ckpt"),
        ModelCheckpoint(
            dirpath=folder,
            filename="step-{step}",
            every_n_train_steps=cfg.checkpoint_every_n_steps,
            save_last=True,
            save_top_k=0,
            enable_version_counter=False,
        ),
    ]
    all_callbacks += [build(c) for c in (cfg.get("callbacks") or {}).values() if c is not None]
    options: dict[str, Any] = {"enable_progress_bar": False, **to_plain(cfg.trainer)}
    if "enable_progress_bar" in cfg.trainer and not cfg.trainer.enable_progress_bar:
        all_callbacks = [callback for callback in all_callbacks if not isinstance(callback, RunProgress)]
    strategy = build_strategy(cfg)
    with raise_as_config_error("trainer"):
        return Trainer(
            default_root_dir=run_dir,
            logger=build_loggers(cfg, run_dir),
            callbacks=all_callbacks,
            strategy=strategy,
            inference_mode=not isinstance(strategy, EncoderFSDP2Strategy),  # weights gathered in it could not be trained
            plugins=build_plugins(),
            use_distributed_sampler=False,  # ShardDataModule shards the positions over the ranks itself
            **options,
        )


def build_plugins() -> list[Any]:
    """Return the checkpoint IO and, on SLURM, an environment that leaves signals to PreemptionCallback."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    return [*plugins, SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else plugins


def build_strategy(cfg: DictConfig) -> Any:
    """Return the config's strategy, or "auto" for a single device, which needs none."""
    return "auto" if cfg.trainer.devices == 1 and cfg.trainer.get("num_nodes", 1) == 1 else build(cfg.strategy)
