"""Train a model on shards.

    sam-train experiment=nuclei
    sam-train data.shards='FOLDER/*.tar' data.val_shards='HELDOUT/*.tar' name=mine

The run folder is runs/<name>, without a timestamp: the same command resumes a killed run from its last checkpoint. A finished
run holds model.pt (or proposer.pt), metrics.json, csv/metrics.csv and config.yaml.
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

from sam_train.checkpoint import run_description, save_checkpoint
from sam_train.cli.commands import TRAIN
from sam_train.config import build, config_hash, save_resolved, to_plain
from sam_train.data.datamodule import ShardDataModule
from sam_train.data.mask_survey import describe_dropped_masks
from sam_train.data.synthetic.training_scenes import compose_training_scenes
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.inference.box_mask_generator import save_proposer
from sam_train.model import Sam
from sam_train.model.tiny_vit import TinyViT
from sam_train.training.factory import (
    build_inference_model,
    build_module,
    build_text_embeddings,
    log_rank_zero,
    with_text_encoder,
)
from sam_train.training.loggers import describe_loggers
from sam_train.training.preemption import Preempted, requeue_sweep_job
from sam_train.training.proposer_module import ProposerModule
from sam_train.training.run_identity import Identity, check_same_run, provenance_of, run_identity, write_identity
from sam_train.training.run_summary import describe_result
from sam_train.training.run_timer import RunTimer
from sam_train.training.step_module import StepModule
from sam_train.training.trainer import build_trainer, silence_lightning

log = logging.getLogger("sam_train")


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
        raise SystemExit(os.EX_TEMPFAIL if error.is_rank_zero else 0) from None  # other ranks exit with a code for errors only


def train_model(cfg: DictConfig) -> dict[str, float]:
    """Train as the config says, or resume; return the metrics, which are also written to metrics.json.

    Return the metrics of an earlier process if the run is already finished. Raises ConfigError if the run folder holds a run
    with another config or the accelerator's memory is too small, CheckpointError if its checkpoint is corrupt, TrainingError
    if a loss is NaN or inf, and Preempted after a preemption signal.
    """
    timer = RunTimer()
    silence_lightning()
    run_dir = Path(cfg.run_dir)
    seed_everything(cfg.seed, verbose=False)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    texts = build_text_embeddings(cfg)
    cfg = with_text_encoder(cfg, texts)
    if cfg.synthetic:
        compose_training_scenes(to_plain(cfg.synthetic))
    datamodule = build(cfg.data, text_store=texts)
    identity = run_identity(cfg, datamodule.train_set.shards)
    last = find_resume_checkpoint(cfg, run_dir, identity)
    module = build_module(cfg)
    module.run_description = run_description(to_plain(cfg), run_provenance(cfg, identity))
    if metrics := read_finished_metrics(cfg, run_dir):
        log_rank_zero("%s is finished: raise trainer.max_steps to continue it, or set another name=...", run_dir)
        return metrics
    if last:
        log_rank_zero("resuming from %s", last)
    trainer = build_trainer(cfg, run_dir, timer)
    log_rank_zero("%s", describe_step_split(trainer, datamodule, module))
    if dropped := describe_dropped_masks(datamodule.train_set):
        log_rank_zero("%s", dropped)
    rank_zero_only(write_identity)(run_dir, identity)
    rank_zero_only(save_resolved)(cfg, run_dir / "config.yaml")
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if last else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        remedy = "lower data.images_per_step or data.max_masks, or set +model.activation_checkpointing=torch"
        raise ConfigError(f"the accelerator ran out of memory in a training step: {remedy}") from error
    return write_results(cfg, run_dir, trainer, module, seconds=timer.seconds())


def run_provenance(cfg: DictConfig, identity: Identity) -> dict[str, Any]:
    """Return the origin of a run's weights, for its checkpoints: its config, its name, and the hashes of what it started from."""
    return {"config": config_hash(cfg), "run": cfg.name, **provenance_of(identity)}


def describe_step_split(trainer: Trainer, datamodule: ShardDataModule, module: StepModule) -> str:
    """Return a sentence on how a step is split into devices and passes.

    Raises ConfigError if the images of a step cannot be divided evenly among the devices, or if batch norms would be trained on
    several devices.
    """
    devices = trainer.num_devices * trainer.num_nodes
    encoder = module.model.image_encoder
    if devices > 1 and isinstance(encoder, TinyViT) and not encoder.frozen_batch_norm:
        remedy = "set model.freeze_batch_norm=true, or trainer.devices=1"
        raise ConfigError(f"on several devices, batch norms would compute statistics of each device's images only: {remedy}")
    share = datamodule.images_per_device(devices)
    passes = -(-share // (module.images_per_pass or share))
    where = "1 device" if devices == 1 else f"{devices} devices with {share} each"
    return f"a step is {datamodule.images_per_step} images: {where}, in {passes} pass{'es' * (passes > 1)}"


def find_resume_checkpoint(cfg: DictConfig, run_dir: Path, identity: Identity) -> Path | None:
    """Return the checkpoint to resume from, or None for a new or a finished run.

    Raises ConfigError if the folder holds a run with another config or other content of its files, and CheckpointError if the
    checkpoint is truncated.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file() and not (run_dir / "metrics.json").is_file():
        return None
    if last.is_file() and not zipfile.is_zipfile(last):  # torch writes zip files, whose directory is at the end
        raise CheckpointError(f"{last} is truncated or corrupt: remove the folder {run_dir} to start again")
    check_same_run(cfg, identity, run_dir)
    return last if last.is_file() else None


def read_finished_metrics(cfg: DictConfig, run_dir: Path) -> dict[str, float] | None:
    """Return the metrics of a run that has made at least `trainer.max_steps` steps, or None."""
    path = run_dir / "metrics.json"
    if not path.is_file() or not result_path(cfg, run_dir).is_file():
        return None
    metrics: dict[str, float] = json.loads(path.read_bytes())
    max_steps = cfg.trainer.max_steps
    return metrics if isinstance(max_steps, int) and metrics["steps"] >= max_steps > 0 else None


def result_path(cfg: DictConfig, run_dir: Path) -> Path:
    """Return the path of the trained model, or of the trained proposer."""
    return run_dir / ("proposer.pt" if cfg.get("proposer") else "model.pt")


def trained_model(cfg: DictConfig, trainer: Trainer, module: StepModule) -> Sam:
    """Return the trained model with unsharded weights, or their EMA. Valid in the process of rank 0."""
    weights = getattr(trainer.strategy, "full_weights", None) or module.model.state_dict()
    return build_inference_model(cfg, {**weights, **(module.ema.full_means if module.ema else {})})


def write_results(cfg: DictConfig, run_dir: Path, trainer: Trainer, module: StepModule, *, seconds: float) -> dict[str, float]:
    """Write the trained model and then metrics.json, which marks the run as finished. Return the metrics.

    seconds: duration of the run (`RunTimer`).
    """
    path = result_path(cfg, run_dir)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": float(trainer.global_step), "seconds": seconds}
    if trainer.is_global_zero:
        assert module.run_description is not None, "train_model sets it"
        provenance = {**module.run_description["provenance"], "steps": trainer.global_step}
        if isinstance(module, ProposerModule):
            save_proposer(path, module.proposer, module.model, provenance)
        else:
            save_checkpoint(path, trained_model(cfg, trainer, module), to_plain(cfg.model), provenance)
        atomic_write_bytes(run_dir / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
        log.info("%s", describe_run(cfg, path, trainer, module, metrics))
    return metrics


def describe_run(cfg: DictConfig, path: Path, trainer: Trainer, module: StepModule, metrics: dict[str, float]) -> str:
    """Return the closing message of a run whose model is at `path`."""
    shards = cfg.data.val_shards if isinstance(cfg.data.val_shards, str) else "HELDOUT"
    command = f"sam-evaluate checkpoint={path} shards={shards}"
    if cfg.get("proposer"):
        command = f"sam-evaluate protocol=prefill generator@protocol.generator=proposer protocol.generator.file={path}"
        command += f" checkpoint={cfg.init_checkpoint} shards={shards}"
    return describe_result(
        metrics,
        what=f"{cfg.name} ({sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} million parameters)",
        result=str(path),
        max_steps=trainer.max_steps,
        loggers=describe_loggers(trainer.loggers),
        next_command=command,
    )


if __name__ == "__main__":
    main()
