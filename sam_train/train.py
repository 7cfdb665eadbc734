"""Train a model on shards.

    sam-train experiment=nuclei
    sam-train data.shards='FOLDER/*.tar' data.val_shards='HELDOUT/*.tar' name=mine

The run lives in runs/<name>, never under a clock, so a run that was killed goes on where its last checkpoint
is: start the same command again. At the end it holds model.pt (or proposer.pt), metrics.json, csv/metrics.csv and config.yaml.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.utilities import rank_zero_only

from sam_train.checkpoint import checkpoint_hash, save_checkpoint
from sam_train.cli.commands import TRAIN
from sam_train.config import build, changed_keys, config_hash, save_resolved, to_plain
from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.inference.box_mask_generator import save_proposer
from sam_train.model import Sam
from sam_train.model.tiny_vit import TinyViT
from sam_train.training import SamModule
from sam_train.training.callbacks import RunTimer
from sam_train.training.factory import build_inference_model, build_module, load_text_embeddings, log_rank_zero
from sam_train.training.preemption import Preempted, requeue_sweep_job
from sam_train.training.proposer_module import ProposerModule
from sam_train.training.trainer import build_trainer, silence_lightning

log = logging.getLogger("sam_train")

RESUME_KEYS = (
    *("model", "data", "prompts", "losses", "optim", "training", "seed", "proposer"),
    *("init_checkpoint", "freeze_image_encoder", "lora", "teacher", "text"),
)
"""What a run that goes on must have as it was. Steps, devices, loader processes and loggers may change."""


def main() -> None:
    """Run `sam-train` on the process's arguments."""
    TRAIN.main()


def command(cfg: DictConfig) -> None:
    """Train as the composed config says. The first process of a preempted run exits with code 75 (EX_TEMPFAIL)."""
    try:
        train_model(cfg)
    except Preempted as error:
        log_rank_zero("%s", error)
        if error.is_rank_zero:
            requeue_sweep_job()
        raise SystemExit(os.EX_TEMPFAIL if error.is_rank_zero else 0) from None  # the others' codes are for real errors


def train_model(cfg: DictConfig) -> dict[str, float]:
    """Train as the config says; the metrics that were also written to metrics.json."""
    stopwatch = RunTimer()
    silence_lightning()
    run_dir = Path(cfg.run_dir)
    seed_everything(cfg.seed, verbose=False)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    datamodule = build(cfg.data, text_store=load_text_embeddings(cfg))
    module = build_module(cfg)
    last = find_resume_checkpoint(cfg, run_dir)
    if metrics := read_finished_metrics(cfg, run_dir):
        log_rank_zero("%s is done: raise trainer.max_steps to train on, or choose another name=...", run_dir)
        return metrics
    if last:
        log_rank_zero("going on from %s", last)
    trainer = build_trainer(cfg, run_dir, stopwatch)
    log_rank_zero("%s", describe_step_split(trainer, datamodule, module))
    rank_zero_only(save_resolved)(cfg, run_dir / "config.yaml")
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if last else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        wanted = "lower data.images_per_step or data.max_masks, or set +model.activation_checkpointing=torch"
        raise ConfigError(f"the accelerator's memory is too small for a step: {wanted}") from error
    return finish(cfg, run_dir, trainer, module, seconds=stopwatch.seconds())


def describe_step_split(trainer: Trainer, datamodule: ShardDataModule, module: SamModule) -> str:
    """A sentence on who does what of a step. Raises ConfigError when its images cannot be dealt out evenly."""
    devices = trainer.num_devices * trainer.num_nodes
    encoder = module.model.image_encoder
    if devices > 1 and isinstance(encoder, TinyViT) and not encoder.frozen_batch_norm:
        what_to_do = "set model.freeze_batch_norm=true, or trainer.devices=1"
        raise ConfigError(f"batch norms would take their means from each device's own share of a step: {what_to_do}")
    share = datamodule.images_per_device(devices)
    passes = -(-share // (module.images_per_pass or share))
    where = "1 device" if devices == 1 else f"{devices} devices with {share} each"
    return f"a step is {datamodule.images_per_step} images: {where}, in {passes} pass{'es' * (passes > 1)}"


def find_resume_checkpoint(cfg: DictConfig, run_dir: Path) -> Path | None:
    """Where a run of this name was killed. Raises ConfigError when that was a run of something else."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file() and not (run_dir / "metrics.json").is_file():
        return None
    if last.is_file() and not zipfile.is_zipfile(last):  # what torch writes is one, with its directory at the end
        raise CheckpointError(f"{last} is torn: remove the folder {run_dir} to begin anew")
    if changed := changed_keys(cfg, run_dir / "config.yaml", RESUME_KEYS):
        what_to_do = "choose another name=..., or remove the folder to begin anew"
        raise ConfigError(f"{run_dir} holds a run with another {', '.join(changed)}: {what_to_do}")
    return last if last.is_file() else None


def read_finished_metrics(cfg: DictConfig, run_dir: Path) -> dict[str, float] | None:
    """What metrics.json says of a run that has made its steps; None of one that has not."""
    path = run_dir / "metrics.json"
    if not path.is_file() or not result_path(cfg, run_dir).is_file():
        return None
    metrics: dict[str, float] = json.loads(path.read_bytes())
    wanted = cfg.trainer.max_steps
    return metrics if isinstance(wanted, int) and metrics["steps"] >= wanted > 0 else None


def result_path(cfg: DictConfig, run_dir: Path) -> Path:
    """What the run is for."""
    return run_dir / ("proposer.pt" if cfg.get("proposer") else "model.pt")


def trained_model(cfg: DictConfig, trainer: Trainer, module: SamModule) -> Sam:
    """The plain model with whole weights, or their running mean; in the first process."""
    weights = getattr(trainer.strategy, "full_weights", None) or module.model.state_dict()
    return build_inference_model(cfg, {**weights, **(module.ema.whole if module.ema else {})})


def finish(cfg: DictConfig, run_dir: Path, trainer: Trainer, module: SamModule, *, seconds: float) -> dict[str, float]:
    """Write what was trained and, last, metrics.json: the mark that the run is done. `seconds` is what a Stopwatch says."""
    path = result_path(cfg, run_dir)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": float(trainer.global_step), "seconds": seconds}
    if trainer.is_global_zero:
        provenance: dict[str, Any] = {"config": config_hash(cfg), "steps": trainer.global_step, "run": cfg.name}
        for name, checkpoint in (("init", cfg.init_checkpoint), ("teacher", cfg.teacher)):
            if checkpoint:
                provenance[name] = checkpoint_hash(Path(checkpoint))
        if isinstance(module, ProposerModule):
            save_proposer(path, module.proposer, module.model, provenance)
        else:
            save_checkpoint(path, trained_model(cfg, trainer, module), to_plain(cfg.model), provenance)
        atomic_write_bytes(run_dir / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
        log.info("%s: %s", path, ", ".join(f"{k} {v:.3f}" for k, v in sorted(metrics.items())))
    return metrics


if __name__ == "__main__":
    main()
