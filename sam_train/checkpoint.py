"""A checkpoint: weights, the model's config, and where they come from.

    {"format": "sam-train/1", "model": state dict, "config": {"_target_": "sam_train.model.build...", ...},
     "provenance": {...}}

Only tensors and plain containers, so `weights_only=True` reads it; the config may build nothing but a model. Released
weights are read and written too: their files hold a bare state dict, and the config is read off its shapes.
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
    check_shapes,
    convert_released_state,
    detect_naming_scheme,
    infer_config,
    shape_mismatches,
)
from sam_train.renames import upgrade_config

FORMAT = "sam-train/1"
HUGGING_FACE_WEIGHTS = "model.safetensors"
_WORDS = "prompt_encoder.text_projection."


def save_checkpoint(path: Path, model: Sam, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the model with its config, whole or not at all."""
    atomic_torch_save(
        path, {"format": FORMAT, "model": _plain_state(model), "config": dict(config), "provenance": dict(provenance)}
    )


def atomic_torch_save(path: Path, document: Mapping[str, Any]) -> None:
    """`torch.save`, whole or not at all."""
    try:
        with atomic_write(path) as stream:
            torch.save(document, stream)
    except RuntimeError as error:  # torch closes the file that a full disk would not take, and stumbles over it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def export_weights(model: Sam, path: Path) -> None:
    """Write the bare weights for other programs; what `path` ends in says for which.

    ".pth", ".safetensors": one file with the names of segment-anything (or MobileSAM). No ending: a folder that
    `transformers.SamModel.from_pretrained` and `SamProcessor.from_pretrained` read, its weights written last.
    A projection of words is left out, which no other program knows: what is written answers points and boxes as before.
    Raises ValueError for another ending and CheckpointError for a model that the others cannot be.
    """
    what_to_do = "other programs' readers know nothing of that: write ONNX, or keep model.pt"
    if model.mask_decoder.iou_sigmoid:
        raise CheckpointError(f"its IoU scores pass a sigmoid: {what_to_do}")
    if model.pixel_statistics != "released":
        raise CheckpointError(f"it normalises pixels by each image's own mean and deviation: {what_to_do}")
    state = {name: tensor for name, tensor in _plain_state(model).items() if not name.startswith(_WORDS)}
    if path.suffix == ".pth":
        atomic_torch_save(path, state)
    elif path.suffix == ".safetensors":
        atomic_write_bytes(path, safetensors.torch.save(state, {"format": "pt"}))
    elif path.suffix:
        raise ValueError(f"{path.name} ends in {path.suffix}: expected .pth, .safetensors, or none for a Hugging Face folder")
    else:
        _save_huggingface(model, state, path)


def _save_huggingface(model: Sam, state: dict[str, torch.Tensor], folder: Path) -> None:
    if detect_naming_scheme(state) is not NamingScheme.SEGMENT_ANYTHING or "image_encoder.blocks.0.attn.rel_pos_h" not in state:
        wanted = "transformers.SamModel has a ViT encoder with linear patches and relative positions"
        raise CheckpointError(f"this model cannot be written for Hugging Face: {wanted}; write .pth or .safetensors instead")
    heads = cast(TwoWayBlock, model.mask_decoder.transformer.layers[0]).self_attn.num_heads
    config = huggingface.sam_model_config(infer_config(state, origin="this model", decoder_heads=heads))
    processor = huggingface.sam_processor_config(model.image_size, model.logits_size, PIXEL_MEAN, PIXEL_STD)
    for name, document in (("config.json", config), ("preprocessor_config.json", processor)):
        atomic_write_bytes(folder / name, (json.dumps(document, indent=1) + "\n").encode())
    weights = safetensors.torch.save(huggingface.convert_to_huggingface(state), {"format": "pt"})
    atomic_write_bytes(folder / HUGGING_FACE_WEIGHTS, weights)


def _plain_state(model: Sam) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Sam:
    """The model of a checkpoint, ours or released (see `ACCEPTED_CHECKPOINTS` in model/weights.py), in eval mode.

    Raises CheckpointError when the file is none, ConfigError for the device.
    """
    document = _read(path)
    _check_device(device)
    if _is_ours(document, path):
        state, config = document["model"], upgrade_config(document["config"])
    else:
        state = convert_released_state(_bare_state(document, path), origin=str(path))
        config = infer_config(state, origin=str(path), decoder_heads=_decoder_heads(path))
    try:
        model = build(config, allowed=("sam_train.model",))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config builds no model: {error}") from error
    if not isinstance(model, Sam):
        raise CheckpointError(f"{path}: its config builds no model but a {type(model).__name__}")
    load_weights(model, state, origin=str(path))
    return model.eval().to(device)


def initialize_from_checkpoint(model: Sam, path: Path) -> str:
    """Fill a model that is to be trained with a checkpoint's weights, or its encoder with a masked auto-encoder's.

    A projection of words stays as chance made it where the checkpoint has none: released ones do not.
    Returns a sentence on what was filled. Raises CheckpointError when the weights do not fit.
    """
    document = _read(path)
    if not _is_ours(document, path):
        state = _bare_state(document, path)
        if detect_naming_scheme(state) is NamingScheme.MAE:
            return f"{path}: image encoder alone, {load_mae_encoder(model.image_encoder, state, origin=str(path))}"
        document = {"model": convert_released_state(state, origin=str(path)), "config": {}}
    statistics = document["config"].get("pixel_statistics", "released")
    if statistics != model.pixel_statistics:
        wanted = f"it saw pixels normalised by pixel_statistics={statistics}, this model has {model.pixel_statistics}"
        raise CheckpointError(f"{path}: {wanted}; set model.pixel_statistics={statistics}")
    state = document["model"]
    new = {name: value for name, value in model.state_dict().items() if name.startswith(_WORDS) and name not in state}
    load_weights(model, {**state, **new}, origin=str(path))
    return f"{path}: all {len(state)} tensors loaded" + (", the projection of words is new" if new else "")


def load_weights(model: Sam, state: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Load `state` strictly. Raises CheckpointError that names what is missing, unexpected or of another shape."""
    own = model.state_dict()
    surplus = [name for name in state if name.startswith(_WORDS) and name not in own]
    hint = f" (it takes words: set model.text_dim={state[surplus[0]].shape[-1]})" if surplus else ""
    check_shapes(shape_mismatches(own, state), origin=origin, hint=hint)
    model.load_state_dict(dict(state))


def checkpoint_hash(path: Path) -> str:
    """SHA-256 of the file, hex; of a Hugging Face folder, that of its weights."""
    return file_sha256(_weights_file(path))


def _read(path: Path) -> Any:
    file = _weights_file(path)
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file is wrong
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is no checkpoint ({reason}): give {ACCEPTED_CHECKPOINTS}") from error


def _is_ours(document: Any, path: Path) -> bool:
    """Whether `document` is what `save_checkpoint` writes. Raises CheckpointError when it is meant to be and is not."""
    if not isinstance(document, dict) or "format" not in document:
        return False
    if document["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {document['format']!r}, this version reads {FORMAT!r}: give {ACCEPTED_CHECKPOINTS}"
        )
    for part in ("model", "config"):
        if not isinstance(document.get(part), dict):
            raise CheckpointError(f"{path}: its {part!r} is missing or no dictionary; give the model.pt that sam-train wrote")
    _refuse_strangers(document["model"], path)
    return True


def _bare_state(document: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict that a file of others is, or holds as its "model" (MAE) or "state_dict"."""
    state = document
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, no weights: give {ACCEPTED_CHECKPOINTS}")
    _refuse_strangers(state, path)
    return state


def _refuse_strangers(state: Mapping[Any, Any], path: Path) -> None:
    if strangers := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{path}: these of its weights are no tensors: {strangers[:5]}")


def _decoder_heads(path: Path) -> int:
    """Of the config.json beside a folder's weights; a bare file has none, and its decoder the released 8 heads."""
    config = path / "config.json"
    if not config.is_file():
        return 8
    try:
        document = json.loads(config.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{config} is no JSON ({error}): give {ACCEPTED_CHECKPOINTS}") from error
    return huggingface.read_decoder_heads(document, origin=str(config))


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has no one type for a device that is not there
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device} cannot be used here ({reason}): device=cpu always can") from error


def _weights_file(path: Path) -> Path:
    file = path / HUGGING_FACE_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the model.pt of a run, for example runs/<name>/model.pt, or {RELEASED_WEIGHTS}"
        )
    return file
