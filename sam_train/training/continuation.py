"""A new run from the weights of another run (`resume_from`), and the command that does so after a NaN."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer

from sam_train.errors import CheckpointError
from sam_train.training.checkpoint_io import AtomicCheckpointIO
from sam_train.training.step_module import StepModule, log_rank_zero


class ContinueFrom(Callback):
    """Starts a run with the weights of the last checkpoint of another run; schedule and step count begin anew.

    run: the other run's folder, or a .ckpt in it. with_optimizer: also take the state of its optimiser.
    Raises CheckpointError if there is no such checkpoint, or if its weights do not fit the module.
    """

    def __init__(self, run: str | PathLike[str], *, with_optimizer: bool) -> None:
        self.path, self.with_optimizer = last_checkpoint(run), with_optimizer

    def load_weights(self, module: StepModule) -> None:
        """Load the weights."""
        document = self._read()
        try:
            module.load_state_dict(document["state_dict"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: its weights do not fit this run: {error}") from error
        parts = "weights and optimiser state" if self.with_optimizer else "weights"
        log_rank_zero("%s of step %d from %s", parts, document["global_step"], self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the state of the optimiser, with the learning rates of this run."""
        if not self.with_optimizer:
            return
        optimizer = trainer.optimizers[0]
        rates = [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups]
        try:
            trainer.strategy.load_optimizer_state_dict(self._read())
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path}: the state of its optimiser does not fit this run: {error}") from error
        for group, (rate, initial_rate) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"], group["initial_lr"] = rate, initial_rate

    def _read(self) -> dict[str, Any]:
        document: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(self.path, weights_only=True)
        return document


def last_checkpoint(run: str | PathLike[str]) -> Path:
    """Return the path of the last checkpoint of a run folder, or of the given .ckpt.

    Raises CheckpointError if it does not exist.
    """
    path = Path(run).expanduser()
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"resume_from={run}: no checkpoint at {path}, give the folder of a sam-train run")
    return path


def lower_lr_command(cfg: DictConfig, run_dir: Path) -> str:
    """Return the command that continues from the last checkpoint of a run, as a new run with half of its learning rates."""
    rates = {f"optim.{name}": cfg.optim[name] / 2 for name in ("lr", "muon_lr") if cfg.optim.get(name)}
    overrides = _without(command_line_overrides(), ("name", "run_dir", "resume_from", "resume_optimizer", *rates))
    new = [f"name={cfg.name}_lower_lr", *(f"{key}={rate:g}" for key, rate in rates.items())]
    if (run_dir / "checkpoints" / "last.ckpt").is_file():
        new.insert(0, f"resume_from={run_dir}")
    return shlex.join(["sam-train", *overrides, *new])


def command_line_overrides() -> list[str]:
    """Return the overrides of this process's command line; none if Hydra did not start it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.lstrip("+~").partition("=")[0] not in keys]
