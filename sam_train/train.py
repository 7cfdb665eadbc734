"""Train a model on shards.

    sam-train experiment=nuclei
    sam-train data.shards='FOLDER/*.tar' data.val_shards='HELDOUT/*.tar' name=mine

The run folder is runs/<name>, without a timestamp: the same command resumes a killed run from its last checkpoint. A finished
run holds model.pt (or proposer.pt), metrics.json, csv/metrics.csv, config.yaml, and in ended.json why it ended.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.utilities import rank_zero_only

from sam_train.checkpoint import run_description
from sam_train.cli.commands import TRAIN
from sam_train.cli.run_folders import check_run_name
from sam_train.config import build, config_hash, save_resolved, to_plain
from sam_train.data.datamodule import ShardDataModule
from sam_train.data.mask_survey import describe_dropped_masks
from sam_train.data.synthetic.training_scenes import compose_training_scenes
from sam_train.errors import INTERRUPTED_EXIT_CODE, CheckpointError, ConfigError, NonFiniteError, TrainingError
from sam_train.model.tiny_vit import TinyViT
from sam_train.training.architecture import with_checkpoint_architecture
from sam_train.training.continuation import ContinueFrom, lower_lr_command
from sam_train.training.factory import build_module, build_text_embeddings, with_text_encoder
from sam_train.training.preemption import Preempted, requeue_sweep_job
from sam_train.training.results import build_validations, read_finished_metrics, write_results
from sam_train.training.run_end import EndReason, clear_end, write_end
from sam_train.training.run_identity import Identity, check_same_run, provenance_of, run_identity, write_identity
from sam_train.training.run_lock import lock_run_folder
from sam_train.training.run_timer import RunTimer
from sam_train.training.step_module import StepModule, log_rank_zero
from sam_train.training.trainer import build_trainer, silence_lightning
from sam_train.training.trainer_options import explain_fit_errors


def main() -> None:
    """Run `sam-train` on the process's arguments."""
    TRAIN.main()


def command(cfg: DictConfig) -> None:
    """Train as the composed config says.

    The first process of a preempted run exits with code 75 (EX_TEMPFAIL), that of a run that Ctrl-C ended with 130.
    """
    try:
        train_model(with_checkpoint_architecture(cfg))
    except Preempted as error:
        log_rank_zero("%s", error)
        if error.is_rank_zero and not error.is_interrupt:
            requeue_sweep_job()
        code = INTERRUPTED_EXIT_CODE if error.is_interrupt else os.EX_TEMPFAIL
        raise SystemExit(code if error.is_rank_zero else 0) from None  # other ranks exit with a code for errors only
    except NonFiniteError as error:
        command_line = lower_lr_command(cfg, Path(cfg.run_dir))
        raise TrainingError(f"{error}. With half the learning rate: {command_line}") from None


def train_model(cfg: DictConfig) -> dict[str, float]:
    """Train as the config says, or resume; return the metrics, which are also written to metrics.json.

    Return the metrics of an earlier process if the run is already finished. Raises ConfigError if the run folder holds a run
    with another config or is in use, or the accelerator's memory is too small; CheckpointError if its checkpoint is corrupt,
    NonFiniteError if a loss is NaN or inf, and Preempted after a preemption signal or Ctrl-C.
    """
    timer = RunTimer()
    check_run_name(cfg)
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
    find_resume_checkpoint(cfg, run_dir, identity)  # refuses another run before anything else
    module = build_module(cfg)
    module.run_description = run_description(to_plain(cfg), run_provenance(cfg, identity))
    if metrics := read_finished_metrics(cfg, run_dir):
        return metrics
    with lock_run_folder(run_dir):
        last = find_resume_checkpoint(cfg, run_dir, identity)  # again: another process may have trained until now
        if metrics := read_finished_metrics(cfg, run_dir):
            return metrics
        if last:
            log_rank_zero("resuming from %s", last)
        rank_zero_only(write_identity)(run_dir, identity)
        return fit(cfg, run_dir, module, datamodule, last, timer)


def fit(
    cfg: DictConfig, run_dir: Path, module: StepModule, datamodule: ShardDataModule, last: Path | None, timer: RunTimer
) -> dict[str, float]:
    """Train `module` from the checkpoint `last`, or from the beginning; return the metrics.

    Stores in the run folder why the run ended. Raises as `train_model`.
    """
    callbacks: list[Callback] = [timer]
    if cfg.data.get("val_shards"):
        callbacks.append(build_validations(cfg, run_dir, module))
    if cfg.resume_from and last is None:
        source = ContinueFrom(cfg.resume_from, with_optimizer=cfg.resume_optimizer)
        source.load_weights(module)
        callbacks.append(source)
    trainer = build_trainer(cfg, run_dir, *callbacks)
    rank_zero_only(clear_end)(run_dir)
    log_rank_zero("%s", describe_step_split(trainer, datamodule, module))
    if dropped := describe_dropped_masks(datamodule.train_set):
        log_rank_zero("%s", dropped)
    rank_zero_only(save_resolved)(cfg, run_dir / "config.yaml")
    try:
        with explain_fit_errors():
            trainer.fit(module, datamodule=datamodule, ckpt_path=str(last) if last else None, weights_only=True)
    except Preempted as error:
        reason = EndReason.INTERRUPTED if error.is_interrupt else EndReason.PREEMPTED
        rank_zero_only(write_end)(run_dir, reason, cfg, step=error.step)
        raise
    except SystemExit:  # Lightning's exit after Ctrl-C outside of the steps
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except NonFiniteError:
        rank_zero_only(write_end)(run_dir, EndReason.NAN, cfg, step=trainer.global_step)
        raise
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


if __name__ == "__main__":
    main()
