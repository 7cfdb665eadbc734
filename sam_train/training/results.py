"""The results of a run: the model by which it is judged, its metrics, and the closing message."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from pytorch_lightning import Trainer
from torch import Tensor

from sam_train.checkpoint import save_checkpoint
from sam_train.config import to_plain
from sam_train.errors import ConfigError
from sam_train.files import atomic_write, atomic_write_bytes
from sam_train.inference.box_mask_generator import save_proposer
from sam_train.training.best_model import BestModel, Validations
from sam_train.training.factory import build_inference_model
from sam_train.training.loggers import describe_loggers
from sam_train.training.proposer_module import ProposerModule
from sam_train.training.run_end import EndReason, end_reason, how_to_continue, read_end, write_end
from sam_train.training.run_summary import describe_result
from sam_train.training.step_module import StepModule, log_rank_zero

log = logging.getLogger("sam_train")


def read_finished_metrics(cfg: DictConfig, run_dir: Path) -> dict[str, float] | None:
    """Return the metrics of a run that has ended, and log what to change so that it continues; None if it has not ended."""
    path = run_dir / "metrics.json"
    if not path.is_file() or not result_path(cfg, run_dir).is_file():
        return None
    metrics: dict[str, float] = json.loads(path.read_bytes())
    max_steps = cfg.trainer.max_steps
    if not isinstance(max_steps, int) or max_steps < 1:
        return None
    if end := read_end(run_dir):
        remedy = how_to_continue(end, cfg) if end["step"] == metrics["steps"] else ""  # else it was killed between the two files
    else:  # written by an earlier version
        remedy = "raise trainer.max_steps" if metrics["steps"] >= max_steps else ""
    if not remedy:
        return None
    log_rank_zero("%s is finished: %s to continue it, or set another name=...", run_dir, remedy)
    return metrics


def result_path(cfg: DictConfig, run_dir: Path) -> Path:
    """Return the path of the trained model, or of the trained proposer."""
    return run_dir / ("proposer.pt" if cfg.get("proposer") else "model.pt")


def build_validations(cfg: DictConfig, run_dir: Path, module: StepModule) -> Validations:
    """Return the callback that keeps the best model, or with monitor=null one that only stores the figures."""
    folder = run_dir / "checkpoints"
    monitor = module.default_monitor if cfg.monitor == "auto" else cfg.monitor
    if monitor is None:
        if cfg.patience is not None:
            raise ConfigError(f"patience={cfg.patience} needs a metric to watch: set monitor=auto")
        return Validations(folder)
    options = {"mode": cfg.monitor_mode, "keep_top_k": cfg.keep_top_k, "patience": cfg.patience}
    return BestModel(folder, partial(save_result, cfg), monitor=monitor, **options)


def save_result(cfg: DictConfig, path: Path, module: StepModule, weights: Mapping[str, Tensor], steps: int) -> None:
    """Write the model with these weights, or the trained proposer, in the format of model.pt."""
    assert module.run_description is not None, "train_model sets it"
    provenance = {**module.run_description["provenance"], "steps": steps}
    if isinstance(module, ProposerModule):
        save_proposer(path, module.proposer, module.model, provenance)
        return
    with torch.random.fork_rng(devices=[]):  # a new model draws initial weights, which are replaced
        model = build_inference_model(cfg, weights)
    save_checkpoint(path, model, to_plain(cfg.model), provenance)


def write_results(cfg: DictConfig, run_dir: Path, trainer: Trainer, module: StepModule, *, seconds: float) -> dict[str, float]:
    """Write the model, and then metrics.json, which marks the run as finished. Return the metrics.

    seconds: duration of the run (`RunTimer`).
    """
    path = result_path(cfg, run_dir)
    validations = next((c for c in trainer.callbacks if isinstance(c, Validations)), None)  # type: ignore[attr-defined]
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": float(trainer.global_step), "seconds": seconds}
    if validations:
        metrics |= validations.metrics()
    if trainer.is_global_zero:
        if isinstance(validations, BestModel) and validations.model.is_file():
            with atomic_write(path) as result, validations.model.open("rb") as best:
                shutil.copyfileobj(best, result)
        else:
            weights = getattr(trainer.strategy, "full_weights", None) or module.model.state_dict()
            means = module.ema.full_means if module.ema else {}
            save_result(cfg, path, module, {**weights, **means}, trainer.global_step)
        reason = end_reason(trainer)
        write_end(run_dir, reason, cfg, step=trainer.global_step)
        atomic_write_bytes(run_dir / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
        log.info("%s", describe_run(cfg, path, trainer, module, metrics, reason))
    return metrics


def describe_run(
    cfg: DictConfig, path: Path, trainer: Trainer, module: StepModule, metrics: dict[str, float], reason: EndReason
) -> str:
    """Return the closing message of a run whose model is at `path`."""
    shards = cfg.data.val_shards if isinstance(cfg.data.val_shards, str) else "HELDOUT"
    command = f"sam-evaluate checkpoint={path} shards={shards}"
    if cfg.get("proposer"):
        command = f"sam-evaluate protocol=prefill generator@protocol.generator=proposer protocol.generator.file={path}"
        command += f" checkpoint={cfg.init_checkpoint} shards={shards}"
    return describe_result(
        metrics,
        reason=reason,
        what=f"{cfg.name} ({sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} million parameters)",
        result=str(path),
        max_steps=trainer.max_steps,
        loggers=describe_loggers(trainer.loggers),
        next_command=command,
    )
