"""Train a model on shards.

    sam-train experiment=nuclei
    sam-train data.shards='FOLDER/*.tar' data.val_shards='HELDOUT/*.tar' name=mine

The run lives in runs/<name>, never under a clock, so a run that was killed goes on where its last checkpoint
is: start the same command again. At the end it holds model.pt, metrics.json, csv/metrics.csv and config.yaml.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.utilities import rank_zero_only

from sam_train.checkpoint import checkpoint_hash, init_weights, load_weights, save_checkpoint
from sam_train.config import build, changed_keys, config_dir, config_hash, save_resolved, to_plain
from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import CheckpointError, ConfigError, exit_with_message
from sam_train.files import commit_file
from sam_train.inference import EmbeddingCache
from sam_train.model import Sam
from sam_train.model.tiny_vit import TinyViT
from sam_train.training import SamModule
from sam_train.training.callbacks import Stopwatch
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.preemption import Preempted
from sam_train.training.trainer import config_errors, make_trainer, quiet_lightning

log = logging.getLogger("sam_train")

DECISIVE = ("model", "data", "prompts", "losses", "optim", "training", "seed", "init_checkpoint", "freeze_image_encoder")
"""What a run that goes on must have as it was. Steps, devices, loader processes and loggers may change."""


@hydra.main(config_path=config_dir(), config_name="train", version_base="1.3")
@exit_with_message
def main(cfg: DictConfig) -> None:
    """Console script `sam-train`. A run that was asked to leave exits with code 75, in its first process."""
    try:
        run(cfg)
    except Preempted as error:
        log.info("%s", error)
        raise SystemExit(os.EX_TEMPFAIL if error.is_first else 0) from None  # the others' codes are for real errors


def run(cfg: DictConfig) -> dict[str, float]:
    """Train as the config says; the metrics that were also written to metrics.json."""
    stopwatch = Stopwatch()
    quiet_lightning()
    run_dir = Path(cfg.run_dir)
    seed_everything(cfg.seed, verbose=False)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    datamodule = build(cfg.data)
    model = build(cfg.model)
    fill_with_weights(model, cfg.init_checkpoint)
    frozen = frozen_encoder(cfg, model)
    with config_errors("training"):
        parts = build(cfg.prompts), build(cfg.losses), build(cfg.optim)
        module = SamModule(model, *parts, **to_plain(cfg.training), frozen_encoder=frozen, seed=cfg.seed)
    last = checkpoint_to_go_on_from(cfg, run_dir)
    if metrics := metrics_if_done(cfg, run_dir):
        log.info("%s is done: raise trainer.max_steps to train on, or choose another name=...", run_dir)
        return metrics
    if last:
        log.info("going on from %s", last)
    trainer = make_trainer(cfg, run_dir, stopwatch)
    log.info("%s", shares_of_a_step(trainer, datamodule, module))
    rank_zero_only(save_resolved)(cfg, run_dir / "config.yaml")
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if last else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        wanted = "lower data.images_per_step or data.max_masks, or set +model.activation_checkpointing=torch"
        raise ConfigError(f"the accelerator's memory is too small for a step: {wanted}") from error
    return finish(cfg, run_dir, trainer, module, seconds=stopwatch.seconds())


def shares_of_a_step(trainer: Trainer, datamodule: ShardDataModule, module: SamModule) -> str:
    """A sentence on who does what of a step. Raises ConfigError when its images cannot be dealt out evenly."""
    devices = trainer.num_devices * trainer.num_nodes
    encoder = module.model.image_encoder
    if devices > 1 and isinstance(encoder, TinyViT) and not encoder.frozen_batch_norm:
        what_to_do = "set model.freeze_batch_norm=true, or trainer.devices=1"
        raise ConfigError(f"batch norms would take their means from each device's own share of a step: {what_to_do}")
    share = datamodule.share_of(devices)
    passes = -(-share // (module.images_per_pass or share))
    where = "1 device" if devices == 1 else f"{devices} devices with {share} each"
    return f"a step is {datamodule.images_per_step} images: {where}, in {passes} pass{'es' * (passes > 1)}"


def fill_with_weights(model: Sam, init_checkpoint: str | None) -> None:
    """Start from a checkpoint, ours or released, if the config names one."""
    if init_checkpoint:
        log.info("starting from %s", init_weights(model, Path(init_checkpoint)))
    elif isinstance(model.image_encoder, TinyViT) and model.image_encoder.frozen_batch_norm:
        what_to_do = "give init_checkpoint=, or set model.freeze_batch_norm=false"
        raise ConfigError(f"batch norms that stay as they are normalise nothing in a model of random weights: {what_to_do}")


def frozen_encoder(cfg: DictConfig, model: Sam) -> FrozenEncoder | None:
    """What encodes pictures when the config freezes the image encoder. Raises ConfigError for values that contradict it."""
    if not cfg.freeze_image_encoder:
        if cfg.embedding_cache:
            raise ConfigError("embedding_cache keeps what an encoder in training outgrows: set freeze_image_encoder=true")
        return None
    if not cfg.init_checkpoint:
        raise ConfigError("freeze_image_encoder=true would keep random weights as they are: give init_checkpoint=")
    if not cfg.embedding_cache:
        return FrozenEncoder(model, None)
    sha256 = checkpoint_hash(Path(cfg.init_checkpoint))
    return FrozenEncoder(model, EmbeddingCache(Path(cfg.embedding_cache), checkpoint_sha256=sha256))


def checkpoint_to_go_on_from(cfg: DictConfig, run_dir: Path) -> Path | None:
    """Where a run of this name was killed. Raises ConfigError when that was a run of something else."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file() and not (run_dir / "metrics.json").is_file():
        return None
    if last.is_file() and not zipfile.is_zipfile(last):  # what torch writes is one, with its directory at the end
        raise CheckpointError(f"{last} is torn: remove the folder {run_dir} to begin anew")
    if changed := changed_keys(cfg, run_dir / "config.yaml", DECISIVE):
        what_to_do = "choose another name=..., or remove the folder to begin anew"
        raise ConfigError(f"{run_dir} holds a run with another {', '.join(changed)}: {what_to_do}")
    return last if last.is_file() else None


def metrics_if_done(cfg: DictConfig, run_dir: Path) -> dict[str, float] | None:
    """What metrics.json says of a run that has made its steps; None of one that has not."""
    path = run_dir / "metrics.json"
    if not path.is_file() or not (run_dir / "model.pt").is_file():
        return None
    metrics: dict[str, float] = json.loads(path.read_bytes())
    wanted = cfg.trainer.max_steps
    return metrics if isinstance(wanted, int) and metrics["steps"] >= wanted > 0 else None


def trained_model(cfg: DictConfig, trainer: Trainer, module: SamModule) -> Sam:
    """The model with whole weights, or their running mean; in the first process."""
    weights = getattr(trainer.strategy, "whole_weights", None)
    means = module.average.whole if module.average else {}
    if weights is None and not means:
        return module.model
    model: Sam = build(cfg.model)
    load_weights(model, {**(weights or module.model.state_dict()), **means}, origin="the trained model")
    return model


def finish(cfg: DictConfig, run_dir: Path, trainer: Trainer, module: SamModule, *, seconds: float) -> dict[str, float]:
    """Write model.pt and, last, metrics.json: the mark that the run is done. `seconds` is what a Stopwatch says."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics |= {"steps": float(trainer.global_step), "seconds": seconds}
    if trainer.is_global_zero:
        provenance: dict[str, Any] = {"config": config_hash(cfg), "steps": trainer.global_step, "run": cfg.name}
        if cfg.init_checkpoint:
            provenance["init"] = checkpoint_hash(Path(cfg.init_checkpoint))
        save_checkpoint(run_dir / "model.pt", trained_model(cfg, trainer, module), to_plain(cfg.model), provenance)
        commit_file(run_dir / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
        log.info("%s: %s", run_dir / "model.pt", ", ".join(f"{k} {v:.3f}" for k, v in sorted(metrics.items())))
    return metrics


if __name__ == "__main__":
    main()
