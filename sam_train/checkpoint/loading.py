"""Load checkpoints into models."""

from __future__ import annotations

import os

import torch

from sam_train.checkpoint.reading import Checkpoint, is_image_encoder_only, read_checkpoint, read_stored_weights
from sam_train.config import build
from sam_train.errors import CheckpointError, ConfigError
from sam_train.model import Sam
from sam_train.model.devices import resolve_device
from sam_train.model.mae import load_mae_encoder
from sam_train.model.weights import ADDED_PARTS, convert_released_state, load_weights


def load_checkpoint(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> Sam:
    """Load the model of a checkpoint of this project or of released weights, in eval mode on `device`.

    checkpoint: path of a file or folder, or a name such as "starter"; `sam_train.weights.ACCEPTED_CHECKPOINTS` lists the formats.
    device: "cpu", "cuda", "cuda:1" and so on; "auto" is the first of cuda, mps and cpu that is available.

    Raises CheckpointError if the file is not a readable model, ConfigError if the device is unavailable.
    """
    content, resolved = read_checkpoint(checkpoint), resolve_device(device)
    return build_model(content, origin=str(checkpoint)).eval().to(resolved)


def build_model(content: Checkpoint, *, origin: str) -> Sam:
    """Return the model of a checkpoint that was read. Raises CheckpointError, which begins with `origin`, if it is invalid."""
    try:
        model = build(content.config, allowed=("sam_train.model",))
    except ConfigError as error:
        raise CheckpointError(f"{origin}: its config does not build a model: {error}") from error
    if not isinstance(model, Sam):
        raise CheckpointError(f"{origin}: its config builds a {type(model).__name__}, expected a Sam")
    load_weights(model, content.state, origin=origin)
    return model


def initialize_from_checkpoint(model: Sam, checkpoint: str | os.PathLike[str]) -> str:
    """Initialize a model before training with a checkpoint's weights, or its image encoder with those of a masked auto-encoder.

    A part of ADDED_PARTS keeps its random initialization if the checkpoint has none, as released ones do not.
    Return a sentence that reports which tensors were loaded. Raises CheckpointError if the weights do not fit the model.
    """
    stored = read_stored_weights(checkpoint)
    origin = str(checkpoint)
    if is_image_encoder_only(stored):
        return f"{origin}: image encoder only, {load_mae_encoder(model.image_encoder, stored.state, origin=origin)}"
    statistics = (stored.config or {}).get("pixel_statistics", "released")
    if statistics != model.pixel_statistics:
        mismatch = f"trained with pixel_statistics={statistics}, but this model has {model.pixel_statistics}"
        raise CheckpointError(f"{origin}: {mismatch}; set model.pixel_statistics={statistics}")
    state = stored.state if stored.config is not None else convert_released_state(stored.state, origin=origin)
    lacking = {name: value for name, value in model.state_dict().items() if name not in state}
    new = {name: value for name, value in lacking.items() if name.startswith(tuple(ADDED_PARTS))}
    load_weights(model, {**state, **new}, origin=origin)
    parts = [part for prefix, part in ADDED_PARTS.items() if any(name.startswith(prefix) for name in new)]
    return f"{origin}: all {len(state)} tensors loaded" + "".join(f", {part} initialized randomly" for part in parts)
