"""Lightning's trainer as a config asks for it: checkpoints, loggers, callbacks, strategy."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from sam_train.config import build, to_plain
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.training.checkpoint_io import AtomicCheckpointIO
from sam_train.training.csv_logger import ResumableCSVLogger
from sam_train.training.preemption import PreemptionCallback
from sam_train.training.strategies import EncoderFSDP2Strategy

NO_NEWS = (
    "Using ModelCheckpoint with manual optimization",  # after the step is where ours are meant to be written
    "Total length of `list` across ranks is zero",  # no validation shards, as the config says
    "The '.*_dataloader' does not have many workers",  # data.num_workers is the user's choice
    "Be aware that when using `ckpt_path`",  # another checkpoint_every_n_steps than before is no loss
    ".*LeafSpec.* is deprecated",  # Lightning 2.6 with torch 2.13
    "None of the inputs have requires_grad",  # of a checkpointed block under lora: fairscale hands in one of its own that does
    "The `srun` command is available",  # whoever wants SLURM has slurm/train.sbatch
)
"""Warnings of Lightning about which nobody can or should do anything."""


def silence_lightning() -> None:
    """Silence Lightning's advertisements, what each of several processes says for itself, and the warnings that are no news."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message)


@contextmanager
def raise_as_config_error(group: str) -> Iterator[None]:
    """Values that a constructor refuses are the config's mistake."""
    try:
        yield
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"the values of {group} do not do: {error}") from error


def build_trainer(cfg: DictConfig, run_dir: Path, *more: Callback) -> Trainer:
    """Lightning's trainer with our checkpoints, loggers, callbacks and `more` of them."""
    if not isinstance(cfg.trainer.max_steps, int) or cfg.trainer.max_steps < 1:
        raise ConfigError(f"trainer.max_steps is {cfg.trainer.max_steps}: give the number of steps, the schedule depends on it")
    if str(cfg.trainer.precision) in ("16", "16-mixed"):  # its scaler would scale the encoder's gradient twice
        raise ConfigError(f"trainer.precision is {cfg.trainer.precision}: the step does not scale its loss, take bf16-mixed")
    if "strategy" in cfg.trainer:  # Lightning's own sum gradients in each of the step's backward passes, and then we would again
        raise ConfigError(f"trainer.strategy is {cfg.trainer.strategy}: give strategy= a name of configs/strategy instead")
    folder = run_dir / "checkpoints"
    callbacks: list[Callback] = [
        *more,
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
    callbacks += [build(c) for c in (cfg.get("callbacks") or {}).values() if c is not None]
    strategy = build_strategy(cfg)
    with raise_as_config_error("trainer"):
        return Trainer(
            default_root_dir=run_dir,
            logger=build_loggers(cfg, run_dir),
            callbacks=callbacks,
            strategy=strategy,
            inference_mode=not isinstance(strategy, EncoderFSDP2Strategy),  # what it gathers there could not be trained on
            plugins=build_plugins(),
            use_distributed_sampler=False,  # ShardDataModule deals the positions out to the ranks itself
            **to_plain(cfg.trainer),
        )


def build_plugins() -> list[Any]:
    """How checkpoints are written; on SLURM also that signals are ours (PreemptionCallback) and not Lightning's to answer."""
    plugins: list[Any] = [AtomicCheckpointIO()]
    return [*plugins, SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else plugins


def build_strategy(cfg: DictConfig) -> Any:
    """The config's strategy where there may be several processes; one alone needs none."""
    return "auto" if cfg.trainer.devices == 1 and cfg.trainer.get("num_nodes", 1) == 1 else build(cfg.strategy)


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """metrics.csv always; wandb as the config says, offline unless the user is logged in."""
    loggers: list[Logger] = [ResumableCSVLogger(run_dir / "csv")]
    if cfg.wandb.enabled:
        mode = ("online" if has_wandb_api_key() else "offline") if cfg.wandb.mode == "auto" else cfg.wandb.mode
        run_id = wandb_run_id(cfg.name, run_dir)
        loggers.append(WandbLogger(project=cfg.wandb.project, name=cfg.name, id=run_id, save_dir=run_dir, mode=mode))
    return loggers


def wandb_run_id(name: str, run_dir: Path) -> str:
    """The id in the run folder, made of the name and chance at the first start: a run that goes on goes on in wandb too,
    and one of the same name elsewhere, or after the folder was removed, is another run there.
    """
    path = run_dir / "wandb_id"
    if path.is_file():
        return path.read_text().strip()
    run_id = f"{re.sub(r'[^A-Za-z0-9_-]', '-', name)[:100]}-{token_hex(4)}"
    rank_zero_only(atomic_write_bytes)(path, f"{run_id}\n".encode())  # the others log nothing
    return run_id


def has_wandb_api_key() -> bool:
    """Whether the user is logged in to wandb on this machine."""
    import wandb

    return bool(wandb.setup().settings.api_key)
