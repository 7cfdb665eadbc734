"""What a config trains: a model filled with weights, which of its parts learn, and the plain model that comes of it in the end
or, `load_run_model`, in between."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from sam_train.checkpoint import checkpoint_hash, initialize_from_checkpoint, load_checkpoint, load_weights
from sam_train.config import build, config_hash, load_stored, to_plain
from sam_train.errors import CheckpointError, ConfigError
from sam_train.inference import EmbeddingCache
from sam_train.losses.box_loss import BoxLoss
from sam_train.model import Sam
from sam_train.model.lora import Lora
from sam_train.model.proposer import Proposer
from sam_train.model.tiny_vit import TinyViT
from sam_train.text import TextEmbeddingStore
from sam_train.training.checkpoint_io import AtomicCheckpointIO
from sam_train.training.distillation import DistillModule, copy_teacher_decoder
from sam_train.training.ema import WeightEMA
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.proposer_module import ProposerModule
from sam_train.training.sam_module import SamModule
from sam_train.training.trainer import raise_as_config_error

log_rank_zero = rank_zero_only(logging.getLogger("sam_train").info)
"""What all processes of a run would say alike is said by the first."""


def build_module(cfg: DictConfig) -> SamModule:
    """The model and its step. Raises ConfigError for values that cannot go together."""
    check_module_config(cfg)
    model: Sam = build(cfg.model)
    load_initial_weights(model, cfg.init_checkpoint)
    if lora := build_lora(cfg):
        lora.inject(model)
    with raise_as_config_error("training"):
        parts = (model, build(cfg.prompts), build(cfg.losses), build(cfg.optim))
        values = {**to_plain(cfg.training), "seed": cfg.seed}
        if cfg.teacher:
            module: SamModule = DistillModule(*parts, teacher=build_teacher(cfg, model), **values)
        elif cfg.get("proposer"):
            module = build_proposer_module(cfg, parts, values)
        else:
            frozen = FrozenEncoder(model, embedding_cache(cfg, cfg.init_checkpoint)) if cfg.freeze_image_encoder else None
            module = SamModule(*parts, frozen_encoder=frozen, **values)
    learn, there = (sum(p.numel() for p in module.parameters() if p.requires_grad or everything) for everything in (False, True))
    if learn < there:
        log_rank_zero("%.2f of %.2f million parameters learn", learn / 1e6, there / 1e6)
    return module


def check_module_config(cfg: DictConfig) -> None:
    """Raise ConfigError for an image encoder that is to learn and to stay as it is, or to stay as chance made it."""
    if cfg.embedding_cache and not (cfg.freeze_image_encoder or cfg.teacher):
        wanted = "set freeze_image_encoder=true, or give teacher="
        raise ConfigError(f"embedding_cache keeps what an encoder in training outgrows: {wanted}")
    if cfg.freeze_image_encoder and (cfg.teacher or cfg.get("lora")):
        raise ConfigError("freeze_image_encoder=true leaves nothing to learn from a teacher or by lora: take one of them")
    if cfg.freeze_image_encoder and not cfg.init_checkpoint:
        raise ConfigError("freeze_image_encoder=true would keep random weights as they are: give init_checkpoint=")
    if cfg.training.text_alignment_weight and not cfg.get("text"):
        raise ConfigError(
            "training.text_alignment_weight is set, but this run has no text prompts: set text=sentence or text=clip"
        )
    if cfg.get("lora") and not cfg.init_checkpoint:
        raise ConfigError("lora would adapt random weights, which stay as they are: give init_checkpoint=")


def load_text_embeddings(cfg: DictConfig) -> TextEmbeddingStore | None:
    """The words of masks, if the config asks for them; `cfg.model` is told which encoder's they are."""
    if not cfg.get("text"):
        return None
    if cfg.teacher:
        raise ConfigError("a teacher is matched in its image embeddings, of which words know nothing: take text= or teacher=")
    texts = TextEmbeddingStore(build(cfg.text), cfg.text_embedding_dir)
    with open_dict(cfg):
        cfg.model.text_dim, cfg.model.text_encoder = texts.dim, texts.embedder.encoder.sha256
    return texts


def load_initial_weights(model: Sam, init_checkpoint: str | None) -> None:
    """Start from a checkpoint, ours or released, if the config names one."""
    if init_checkpoint:
        log_rank_zero("starting from %s", initialize_from_checkpoint(model, Path(init_checkpoint)))
    elif isinstance(model.image_encoder, TinyViT) and model.image_encoder.frozen_batch_norm:
        what_to_do = "give init_checkpoint=, or set model.freeze_batch_norm=false"
        raise ConfigError(f"batch norms that stay as they are normalise nothing in a model of random weights: {what_to_do}")


def build_lora(cfg: DictConfig) -> Lora | None:
    """The adapters that the config asks for."""
    return build(cfg.lora) if cfg.get("lora") else None


def build_teacher(cfg: DictConfig, student: Sam) -> FrozenEncoder:
    """The model whose image embeddings are to be matched; the student gets its prompt encoder and mask decoder."""
    teacher = load_checkpoint(Path(cfg.teacher))
    copy_teacher_decoder(student, teacher, origin=cfg.teacher)
    return FrozenEncoder(teacher, embedding_cache(cfg, cfg.teacher))


def build_proposer_module(cfg: DictConfig, parts: tuple[Any, ...], values: dict[str, Any]) -> ProposerModule:
    """A proposer of boxes on the embeddings of a model that stays as it is; `parts` and `values` as for SamModule."""
    if not cfg.freeze_image_encoder or cfg.get("text"):
        raise ConfigError("a proposer reads the embeddings of a model that is done: set freeze_image_encoder=true, and no text")
    model, loss = parts[0], parts[2]
    if not isinstance(loss, BoxLoss):
        raise ConfigError(f"proposer= learns by boxes, not by {type(loss).__name__}: set losses=boxes")
    proposer: Proposer = build(cfg.proposer, embedding_dim=model.image_embedding_dim)
    frozen = FrozenEncoder(model, embedding_cache(cfg, cfg.init_checkpoint))
    return ProposerModule(*parts, proposer=proposer, frozen_encoder=frozen, **values)


def embedding_cache(cfg: DictConfig, checkpoint: str) -> EmbeddingCache | None:
    """Of the image encoder in `checkpoint`, if the config names a folder."""
    if not cfg.embedding_cache:
        return None
    return EmbeddingCache(Path(cfg.embedding_cache), checkpoint_sha256=checkpoint_hash(Path(checkpoint)))


def build_inference_model(cfg: DictConfig, weights: Mapping[str, Tensor]) -> Sam:
    """A model of the config with a trained module's weights, its adapters merged into them."""
    model: Sam = build(cfg.model)
    lora = build_lora(cfg)
    if lora:
        lora.inject(model)
    load_weights(model, weights, origin="the trained model")
    if lora:
        lora.merge(model)
    return model


def load_run_model(run_dir: Path) -> tuple[Sam, dict[str, Any], dict[str, Any]]:
    """The model at the last checkpoint of a run, or the running mean of its weights; its config and provenance as in model.pt.

    Raises CheckpointError when there is none.
    """
    path, saved = run_dir / "checkpoints" / "last.ckpt", run_dir / "config.yaml"
    if not path.is_file() or not saved.is_file():
        raise CheckpointError(f"{run_dir} is no folder of a run: it has no {(saved if path.is_file() else path).name}")
    cfg = OmegaConf.create(load_stored(saved))
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    means = checkpoint["callbacks"].get(WeightEMA.__name__, {}).get("means", {})
    provenance = {"config": config_hash(cfg), "steps": checkpoint["global_step"], "run": cfg.name}
    return build_inference_model(cfg, {**weights, **means}), to_plain(cfg.model), provenance
