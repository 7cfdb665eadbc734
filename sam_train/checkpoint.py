"""Read and write checkpoints: weights, the model's config and their provenance.

    {"format": "sam-train/1", "model": state dict, "config": {"_target_": "sam_train.model.build...", ...},
     "provenance": {...}}

A checkpoint holds only tensors and plain containers, so `weights_only=True` reads it; its config may build only a model.
Released weights are read and written too: their files hold a bare state dict, from whose shapes the config is inferred.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from sam_train.config import build
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import atomic_write, atomic_write_bytes, file_sha256
from sam_train.model import Sam, huggingface
from sam_train.model.mae import load_mae_encoder
from sam_train.model.sam import PIXEL_MEAN, PIXEL_STD
from sam_train.model.transformer import TwoWayBlock
from sam_train.model.weights import (
    ACCEPTED_CHECKPOINTS,
    RELEASED_WEIGHTS,
    NamingScheme,
    check_state_dict,
    convert_released_state,
    detect_naming_scheme,
    infer_config,
)
from sam_train.renames import upgrade_config

FORMAT = "sam-train/1"
HUGGING_FACE_WEIGHTS = "model.safetensors"
_TEXT_PREFIX = "prompt_encoder.text_projection."


def save_checkpoint(path: Path, model: Sam, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the model with its config and provenance atomically."""
    atomic_torch_save(
        path, {"format": FORMAT, "model": _cpu_state_dict(model), "config": dict(config), "provenance": dict(provenance)}
    )


def atomic_torch_save(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` with `torch.save`, atomically. Raises OSError if writing fails."""
    try:
        with atomic_write(path) as stream:
            torch.save(document, stream)
    except RuntimeError as error:  # on a full disk torch fails again when it closes the file, and hides the OSError
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def export_weights(model: Sam, path: Path) -> None:
    """Write the bare weights in the format of another program, which the suffix of `path` selects.

    ".pth", ".safetensors": one file with the tensor names of segment-anything (or MobileSAM). No suffix: a folder that
    `transformers.SamModel.from_pretrained` and `SamProcessor.from_pretrained` read, its weights written last.
    The projection of text embeddings is dropped, because no other program reads it; points and boxes are not affected.
    Raises ValueError for another suffix and CheckpointError for a model that the format cannot represent.
    """
    remedy = "readers of other programs do not support that; export ONNX, or use model.pt"
    if model.mask_decoder.iou_sigmoid:
        raise CheckpointError(f"the model applies a sigmoid to its IoU scores: {remedy}")
    if model.pixel_statistics != "released":
        raise CheckpointError(f"the model normalises pixels by each image's own mean and standard deviation: {remedy}")
    state = {name: tensor for name, tensor in _cpu_state_dict(model).items() if not name.startswith(_TEXT_PREFIX)}
    if path.suffix == ".pth":
        atomic_torch_save(path, state)
    elif path.suffix == ".safetensors":
        atomic_write_bytes(path, safetensors.torch.save(state, {"format": "pt"}))
    elif path.suffix:
        raise ValueError(f"{path.name} has suffix {path.suffix}: expected .pth, .safetensors, or none for a Hugging Face folder")
    else:
        _save_huggingface(model, state, path)


def _save_huggingface(model: Sam, state: dict[str, torch.Tensor], folder: Path) -> None:
    if detect_naming_scheme(state) is not NamingScheme.SEGMENT_ANYTHING or "image_encoder.blocks.0.attn.rel_pos_h" not in state:
        expected = "transformers.SamModel has a ViT encoder with a linear patch embedding and relative positions"
        raise CheckpointError(f"this model cannot be written for Hugging Face: {expected}; write .pth or .safetensors instead")
    heads = cast(TwoWayBlock, model.mask_decoder.transformer.layers[0]).self_attn.num_heads
    config = huggingface.sam_model_config(infer_config(state, origin="this model", decoder_heads=heads))
    processor = huggingface.sam_processor_config(model.image_size, model.logits_size, PIXEL_MEAN, PIXEL_STD)
    for name, document in (("config.json", config), ("preprocessor_config.json", processor)):
        atomic_write_bytes(folder / name, (json.dumps(document, indent=1) + "\n").encode())
    weights = safetensors.torch.save(huggingface.convert_to_huggingface(state), {"format": "pt"})
    atomic_write_bytes(folder / HUGGING_FACE_WEIGHTS, weights)


def _cpu_state_dict(model: Sam) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Sam:
    """Load the model of a checkpoint of this project or of released weights, in eval mode on `device`.

    `ACCEPTED_CHECKPOINTS` in model/weights.py lists the formats. Raises CheckpointError if the file is not a readable model,
    ConfigError if the device is unavailable.
    """
    document = _read(path)
    _check_device(device)
    if _is_project_checkpoint(document, path):
        state, config = document["model"], upgrade_config(document["config"])
    else:
        state = convert_released_state(_extract_state_dict(document, path), origin=str(path))
        config = infer_config(state, origin=str(path), decoder_heads=_decoder_heads(path))
    try:
        model = build(config, allowed=("sam_train.model",))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config does not build a model: {error}") from error
    if not isinstance(model, Sam):
        raise CheckpointError(f"{path}: its config builds a {type(model).__name__}, expected a Sam")
    load_weights(model, state, origin=str(path))
    return model.eval().to(device)


def initialize_from_checkpoint(model: Sam, path: Path) -> str:
    """Initialize a model before training with a checkpoint's weights, or its image encoder with those of a masked auto-encoder.

    The projection of text embeddings keeps its random initialization if the checkpoint has none, as released ones do not.
    Return a sentence that reports which tensors were loaded. Raises CheckpointError if the weights do not fit the model.
    """
    document = _read(path)
    if not _is_project_checkpoint(document, path):
        state = _extract_state_dict(document, path)
        if detect_naming_scheme(state) is NamingScheme.MAE:
            return f"{path}: image encoder only, {load_mae_encoder(model.image_encoder, state, origin=str(path))}"
        document = {"model": convert_released_state(state, origin=str(path)), "config": {}}
    statistics = document["config"].get("pixel_statistics", "released")
    if statistics != model.pixel_statistics:
        mismatch = f"trained with pixel_statistics={statistics}, but this model has {model.pixel_statistics}"
        raise CheckpointError(f"{path}: {mismatch}; set model.pixel_statistics={statistics}")
    state = document["model"]
    new = {name: value for name, value in model.state_dict().items() if name.startswith(_TEXT_PREFIX) and name not in state}
    load_weights(model, {**state, **new}, origin=str(path))
    return f"{path}: all {len(state)} tensors loaded" + (", text projection initialized randomly" if new else "")


def load_weights(model: Sam, state: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Load `state` strictly.

    origin: source of the weights, for messages. Raises CheckpointError, which names the tensors that are missing, unexpected
    or of another shape.
    """
    expected = model.state_dict()
    text_tensors = [name for name in state if name.startswith(_TEXT_PREFIX) and name not in expected]
    hint = f" (it accepts text prompts: set model.text_dim={state[text_tensors[0]].shape[-1]})" if text_tensors else ""
    check_state_dict(expected, state, origin=origin, hint=hint)
    model.load_state_dict(dict(state))


def checkpoint_hash(path: Path) -> str:
    """Return the SHA-256 of the checkpoint file as hex digits; for a Hugging Face folder, that of its weights file."""
    return file_sha256(_weights_file(path))


def _read(path: Path) -> Any:
    file = _weights_file(path)
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises different exception types for different kinds of invalid files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint ({reason}): give {ACCEPTED_CHECKPOINTS}") from error


def _is_project_checkpoint(document: Any, path: Path) -> bool:
    """Return whether `document` was written by `save_checkpoint`. Raises CheckpointError if such a document is invalid."""
    if not isinstance(document, dict) or "format" not in document:
        return False
    if document["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {document['format']!r}, this version reads {FORMAT!r}: give {ACCEPTED_CHECKPOINTS}"
        )
    for part in ("model", "config"):
        if not isinstance(document.get(part), dict):
            raise CheckpointError(f"{path}: its {part!r} is missing or not a dictionary; give the model.pt that sam-train wrote")
    _check_all_tensors(document["model"], path)
    return True


def _extract_state_dict(document: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a file of another program: the document itself, or its "model" (MAE) or "state_dict"."""
    state = document
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected weights: give {ACCEPTED_CHECKPOINTS}")
    _check_all_tensors(state, path)
    return state


def _check_all_tensors(state: Mapping[Any, Any], path: Path) -> None:
    if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{path}: these entries of its weights are not tensors: {others[:5]}")


def _decoder_heads(path: Path) -> int:
    """Return the number of decoder heads in the config.json of a Hugging Face folder, or the released 8 without one."""
    config = path / "config.json"
    if not config.is_file():
        return 8
    try:
        document = json.loads(config.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{config} is not JSON ({error}): give {ACCEPTED_CHECKPOINTS}") from error
    return huggingface.read_decoder_heads(document, origin=str(config))


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for an unavailable device
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device} is unavailable on this machine ({reason}): use device=cpu") from error


def _weights_file(path: Path) -> Path:
    file = path / HUGGING_FACE_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the model.pt of a run, for example runs/<name>/model.pt, or {RELEASED_WEIGHTS}"
        )
    return file
