"""Read the model in a Lightning checkpoint (.ckpt) of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sam_train.checkpoint.sharded import TENSOR_FOLDER_KEY, is_sharded, load_sharded_tensors
from sam_train.config import build, config_hash, load_stored
from sam_train.errors import CheckpointError
from sam_train.model import Sam
from sam_train.model.lora import Lora
from sam_train.model.weights import load_weights
from sam_train.renames import CALLBACKS, upgrade_config

RUN_KEY = "sam_train"
"""Key of a .ckpt under which a run stores `run_description`."""
_EMA_CALLBACK = "WeightEMA"


def run_description(cfg: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a .ckpt must hold beside Lightning's own entries to be read without its run folder.

    cfg: resolved config of the run, as plain values. provenance: origin of the weights.
    """
    return {"model": cfg["model"], "lora": cfg.get("lora"), "provenance": dict(provenance)}


def is_run_checkpoint(document: Any, file: Path) -> bool:
    """Return whether a loaded file is a checkpoint of a run of this project, with its config inside or in the run folder."""
    is_lightning = isinstance(document, Mapping) and {"state_dict", "pytorch-lightning_version"} <= set(document)
    return is_lightning and (RUN_KEY in document or _config_file(file).is_file())


def read_run_checkpoint(document: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return weights, model config and provenance of a run at the step of the checkpoint.

    The weights are their EMA if the run has one, with LoRA adapters merged into them.
    Raises CheckpointError if the checkpoint is incomplete.
    """
    description = document.get(RUN_KEY) or _description_of_run_folder(file)
    parts = {"state_dict": document["state_dict"], "callbacks": document.get("callbacks", {})}
    parts = upgrade_callback_names(parts)
    if is_sharded(document):
        parts = load_sharded_tensors(parts, file, document[TENSOR_FOLDER_KEY])
    weights = {name.removeprefix("model."): value for name, value in parts["state_dict"].items() if name.startswith("model.")}
    weights |= parts["callbacks"].get(_EMA_CALLBACK, {}).get("means", {})
    config, lora = upgrade_config(description["model"]), upgrade_config(description["lora"])
    if lora:
        weights = dict(merged_model(config, lora, weights, origin=str(file)).state_dict())
    return weights, config, {**description["provenance"], "steps": document["global_step"]}


def merged_model(config: Mapping[str, Any], lora: Mapping[str, Any] | None, weights: Mapping[str, Tensor], *, origin: str) -> Sam:
    """Return a model with trained weights, with LoRA adapters merged into them.

    config, lora: configs of the model and of its adapters, None without adapters.
    Raises CheckpointError, which begins with `origin`, if the weights do not fit.
    """
    model: Sam = build(config, allowed=("sam_train.model",))
    if not lora:
        load_weights(model, weights, origin=origin)
        return model
    adapters: Lora = build(lora, allowed=("sam_train.model",))
    adapters.inject(model)
    load_weights(model, weights, origin=origin)
    adapters.merge(model)
    return model


def upgrade_callback_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return a loaded checkpoint whose callback states have today's class names (`renames.CALLBACKS`)."""
    if "callbacks" not in document:
        return document
    return {**document, "callbacks": {CALLBACKS.get(name, name): state for name, state in document["callbacks"].items()}}


def _description_of_run_folder(file: Path) -> dict[str, Any]:
    """Return the description of a run from its config.yaml, for checkpoints of earlier versions."""
    cfg = load_stored(_config_file(file))
    if not isinstance(cfg, Mapping) or "model" not in cfg:
        raise CheckpointError(f"{_config_file(file)} is not the config of a sam-train run: give a .ckpt inside its run folder")
    return run_description(cfg, {"config": config_hash(cfg), "run": cfg.get("name", "")})


def _config_file(file: Path) -> Path:
    return file.parent.parent / "config.yaml"
