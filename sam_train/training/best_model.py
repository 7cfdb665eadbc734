"""The best model of a run by a validation metric, and early stopping by the same metric.

    checkpoints/validations.json   figures of every validation, and the best one
    checkpoints/best.pt            the model of the best one, in the format of model.pt
    checkpoints/step-<N>.pt        with keep_top_k > 1: the models of the best validations

The figures are stored when they are measured, not in last.ckpt: a validation follows the checkpoint of its step, and a run that
is killed between two checkpoints must not lose a better model that it has already written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes

SaveModel = Callable[[Path, Any, Mapping[str, Tensor], int], None]
"""Writes a model file: path, trained module, weights of its model, number of steps."""


class Validations(Callback):
    """Stores the figures of each validation; also makes the run validate after its last step.

    folder: `checkpoints` of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "validations.json"
        self.before: dict[str, float] | None = None
        """The figures before the first step; None if they were not measured."""
        self.history: list[dict[str, float]] = []
        """The figures after steps, in their order, each with its `step`."""
        self.best: dict[str, float] | None = None

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run: this check is made only by a run that begins at step 0."""
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the figures of earlier processes, without those of steps that are repeated. A better model stays the best."""
        if trainer.global_step == 0 and self.before is None:
            self._reset()
        elif trainer.global_step and self.path.is_file():
            document = json.loads(self.path.read_bytes())
            self.before, self.best = document["before"], document["best"]
            self.history = [entry for entry in document["validations"] if entry["step"] <= trainer.global_step]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Make the last step a validation: Lightning validates when a run is told to stop."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the figures."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.sanity_checking:
            self.before = {"step": 0.0, **figures}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=0)
        else:
            entry = {"step": float(trainer.global_step), **figures}
            self.history = [*(e for e in self.history if e["step"] != entry["step"]), entry]
            self.rank(trainer, pl_module, entry)
        if trainer.is_global_zero:
            document = {"before": self.before, "best": self.best, "validations": self.history}
            atomic_write_bytes(self.path, (json.dumps(document, indent=1) + "\n").encode())

    def metrics(self) -> dict[str, float]:
        """Return the figures of the model in model.pt as `val/...`, of the last step as `val_last/...`, before training as
        `val_before/...`, each with its step; equal ones are listed once."""
        last = self.history[-1] if self.history else None
        chosen = self.best or last
        parts = {"val": chosen, "val_last": last if last != chosen else None, "val_before": self.before}
        return {
            f"{prefix}/{name.removeprefix('val/')}": value
            for prefix, figures in parts.items()
            for name, value in (figures or {}).items()
        }

    def rank(self, trainer: Trainer, module: LightningModule, entry: Mapping[str, float]) -> None:
        """Compare the figures of a step with earlier ones. Here nothing is compared: the last model counts."""

    def _reset(self) -> None:
        self.before, self.history, self.best = None, [], None


class BestModel(Validations):
    """Keeps the model of the best validation and, with `patience`, stops a run that does not improve.

    monitor: a metric of the validation. mode: "max" or "min".
    keep_top_k: number of models that are kept; the best one is always best.pt.
    patience: number of validations without a better one after which the run stops; None never stops it.
    save: writes a model file in the process of rank 0.
    Raises ConfigError for values out of range.
    """

    def __init__(
        self, folder: Path, save: SaveModel, *, monitor: str, mode: str = "max", keep_top_k: int = 1, patience: int | None = None
    ) -> None:
        super().__init__(folder)
        if mode not in ("max", "min"):
            raise ConfigError(f"monitor_mode is {mode!r}: expected max or min")
        if not isinstance(keep_top_k, int) or keep_top_k < 1:
            raise ConfigError(f"keep_top_k is {keep_top_k!r}: expected an integer of at least 1")
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ConfigError(f"patience is {patience!r}: expected an integer of at least 1, or null")
        self.monitor, self.mode, self.keep_top_k, self.patience, self._save = monitor, mode, keep_top_k, patience, save

    @property
    def model(self) -> Path:
        """Path of the best model."""
        return self.folder / "best.pt"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the figures and keep the model if it is among the best. Raises ConfigError if the metric does not exist."""
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ConfigError(f"monitor={self.monitor} is not a metric of the validation: expected one of {known}")
        super().on_validation_end(trainer, pl_module)

    def rank(self, trainer: Trainer, module: LightningModule, entry: Mapping[str, float]) -> None:
        """Write the model if it is among the `keep_top_k` best; stop the run if the best one is `patience` validations old."""
        ranked = sorted(self.history, key=self._badness)[: self.keep_top_k]
        is_best = self.best is None or self._badness(entry) < self._badness(self.best)
        is_kept = self.keep_top_k > 1 and entry in ranked
        if is_best or is_kept:
            weights = measured_weights(module)  # every process takes part
            if trainer.is_global_zero:
                step = int(entry["step"])
                for path in [self.model] * is_best + [self._step_path(step)] * is_kept:
                    self._save(path, module, weights, step)
        if is_best:
            self.best = dict(entry)
        if trainer.is_global_zero and self.keep_top_k > 1:
            kept = {self._step_path(int(e["step"])) for e in ranked}
            for path in set(self.folder.glob("step-*.pt")) - kept:
                path.unlink()
        assert self.best is not None
        if self.patience is not None and sum(e["step"] > self.best["step"] for e in self.history) >= self.patience:
            trainer.should_stop = True

    def _badness(self, entry: Mapping[str, float]) -> float:
        value = entry.get(self.monitor, math.nan)  # a run may resume with another monitor
        return math.inf if math.isnan(value) else -value if self.mode == "max" else value

    def _step_path(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def _reset(self) -> None:
        super()._reset()
        self.model.unlink(missing_ok=True)


def measured_weights(module: LightningModule) -> dict[str, Tensor]:
    """Return the full weights of the module's model, as a validation sees them: with an EMA, those of the EMA."""
    state = module.model.state_dict()  # type: ignore[union-attr]
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value) for name, value in state.items()}
