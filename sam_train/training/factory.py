"""Builds what a config trains (model, initial weights, module) and the model that results, at the end or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import Tensor

from sam_train.checkpoint import initialize_from_checkpoint, load_checkpoint, merged_model
from sam_train.config import build, to_plain
from sam_train.errors import ConfigError
from sam_train.losses.box_loss import BoxLoss
from sam_train.model import Sam
from sam_train.model.lora import Lora
from sam_train.model.proposer import Proposer
from sam_train.model.tiny_vit import TinyViT
from sam_train.text import TextEmbeddingStore
from sam_train.training.click_validation import ClickMeasure
from sam_train.training.distillation import DistillModule, copy_teacher_decoder
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.proposer_module import ProposerModule
from sam_train.training.sam_module import SamModule, check_loss_resolution
from sam_train.training.step_module import StepModule, log_rank_zero
from sam_train.training.trainer import raise_as_config_error


def build_text_embeddings(cfg: DictConfig) -> TextEmbeddingStore | None:
    """Return the text embeddings of masks, or None if the config has no text encoder.

    Raises ConfigError if the config also has a teacher.
    """
    if not cfg.get("text"):
        return None
    if cfg.teacher:
        raise ConfigError("distillation trains on image embeddings only and has no text prompts: set either text= or teacher=")
    return TextEmbeddingStore(build(cfg.text), cfg.text_embedding_dir)


def with_text_encoder(cfg: DictConfig, texts: TextEmbeddingStore | None) -> DictConfig:
    """Return the config whose model takes the embeddings of `texts`: with their dimension and the hash of their text encoder.

    `build_module` needs this config for a run with text prompts. Without text embeddings it is `cfg` itself.
    """
    if texts is None:
        return cfg
    resolved = deepcopy(cfg)
    with open_dict(resolved):
        resolved.model.text_dim, resolved.model.text_encoder = texts.dim, texts.embedder.encoder.sha256
    return resolved


def build_module(cfg: DictConfig) -> StepModule:
    """Return the module that a config trains, with its model and initial weights.

    Raises ConfigError for values that exclude each other, and CheckpointError if initial weights do not fit.
    """
    check_module_config(cfg)
    model: Sam = build(cfg.model)
    load_initial_weights(model, cfg.init_checkpoint)
    if lora := build_lora(cfg):
        lora.inject(model)
    with raise_as_config_error("training"):
        module = _build_step_module(cfg, model)
    all_parameters = list(module.parameters())
    num_trained, num_total = (sum(p.numel() for p in all_parameters if p.requires_grad), sum(p.numel() for p in all_parameters))
    if num_trained < num_total:
        log_rank_zero("%.2f of %.2f million parameters are trained", num_trained / 1e6, num_total / 1e6)
    return module


def _build_step_module(cfg: DictConfig, model: Sam) -> StepModule:
    simulator, loss, optimizer = build(cfg.prompts), build(cfg.losses), build(cfg.optim)
    options = {**to_plain(cfg.training), "seed": cfg.seed}
    validation: ClickMeasure = build(cfg.validation)
    if not cfg.teacher and not cfg.get("proposer"):
        frozen = FrozenEncoder(model, cfg.embedding_cache) if cfg.freeze_image_encoder else None
        return SamModule(model, simulator, loss, optimizer, frozen_encoder=frozen, validation=validation, **options)
    check_loss_resolution(options.pop("loss_resolution", "grid"))  # without effect here, as the next two
    for name in ("text_alignment_weight", "background_clicks"):
        options.pop(name, None)
    if cfg.teacher:
        return DistillModule(model, optimizer, teacher=build_teacher(cfg, model), validation=validation, **options)
    return build_proposer_module(cfg, model, loss, optimizer, options)


def check_module_config(cfg: DictConfig) -> None:
    """Raise ConfigError for options that exclude each other, and for frozen encoders without weights."""
    if cfg.embedding_cache and not (cfg.freeze_image_encoder or cfg.teacher):
        remedy = "set freeze_image_encoder=true, or give teacher="
        raise ConfigError(f"embedding_cache requires an image encoder that is not trained: {remedy}")
    if cfg.freeze_image_encoder and (cfg.teacher or cfg.get("lora")):
        raise ConfigError("freeze_image_encoder=true excludes teacher= and lora=, which train the image encoder: set one of them")
    if cfg.freeze_image_encoder and not cfg.init_checkpoint:
        raise ConfigError("freeze_image_encoder=true would freeze random weights: give init_checkpoint=")
    if cfg.training.text_alignment_weight and not cfg.get("text"):
        raise ConfigError(
            "training.text_alignment_weight is set, but this run has no text prompts: set text=sentence or text=clip"
        )
    if cfg.get("lora") and not cfg.init_checkpoint:
        raise ConfigError("lora would adapt random weights, which stay frozen: give init_checkpoint=")


def load_initial_weights(model: Sam, init_checkpoint: str | None) -> None:
    """Load the initial weights from a checkpoint of this project or a released one, if there is one.

    Raises ConfigError if there is none and the model has frozen batch norms.
    """
    if init_checkpoint:
        log_rank_zero("initial weights from %s", initialize_from_checkpoint(model, init_checkpoint))
    elif isinstance(model.image_encoder, TinyViT) and model.image_encoder.frozen_batch_norm:
        remedy = "give init_checkpoint=, or set model.freeze_batch_norm=false"
        raise ConfigError(f"frozen batch norms do not normalise the activations of a model with random weights: {remedy}")


def build_lora(cfg: DictConfig) -> Lora | None:
    """Return the LoRA adapters of a config, or None."""
    return build(cfg.lora) if cfg.get("lora") else None


def build_teacher(cfg: DictConfig, student: Sam) -> FrozenEncoder:
    """Return the teacher's image encoder, and copy the teacher's prompt encoder and mask decoder into the student."""
    teacher = load_checkpoint(cfg.teacher)
    copy_teacher_decoder(student, teacher, origin=cfg.teacher)
    return FrozenEncoder(teacher, cfg.embedding_cache)


def build_proposer_module(cfg: DictConfig, model: Sam, loss: Any, optimizer: Any, options: dict[str, Any]) -> ProposerModule:
    """Return the module that trains a box proposer on the embeddings of a frozen model.

    Raises ConfigError if the image encoder is not frozen, the run has text prompts, or the loss is not a BoxLoss.
    """
    if not cfg.freeze_image_encoder or cfg.get("text"):
        raise ConfigError("a proposer trains on the embeddings of a frozen model: set freeze_image_encoder=true and no text=")
    if not isinstance(loss, BoxLoss):
        raise ConfigError(f"proposer= needs a box loss, but losses= is {type(loss).__name__}: set losses=boxes")
    proposer: Proposer = build(cfg.proposer, embedding_dim=model.image_embedding_dim)
    frozen = FrozenEncoder(model, cfg.embedding_cache)
    return ProposerModule(model, loss, optimizer, proposer=proposer, frozen_encoder=frozen, **options)


def build_inference_model(cfg: DictConfig, weights: Mapping[str, Tensor]) -> Sam:
    """Return a model of the config with a trained module's weights, with LoRA adapters merged into them."""
    lora = to_plain(cfg.lora) if cfg.get("lora") else None
    return merged_model(to_plain(cfg.model), lora, weights, origin="the trained model")
