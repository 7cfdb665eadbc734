"""A checkpoint: weights, the model's config, and where they come from.

    {"format": "sam-train/1", "model": state dict, "config": {"_target_": "sam_train.model.build...", ...},
     "provenance": {...}}

Only tensors and plain containers, so `weights_only=True` reads it; the config may build nothing but a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sam_train.config import build
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import file_sha256, written_whole
from sam_train.model import Sam

FORMAT = "sam-train/1"


def save_checkpoint(path: Path, model: Sam, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the model with its config, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, {"format": FORMAT, "model": state, "config": dict(config), "provenance": dict(provenance)})


def write_whole(path: Path, document: Mapping[str, Any]) -> None:
    """`torch.save`, whole or not at all."""
    try:
        with written_whole(path) as stream:
            torch.save(document, stream)
    except RuntimeError as error:  # torch closes the file that a full disk would not take, and stumbles over it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> Sam:
    """The model of a checkpoint in eval mode. Raises CheckpointError when it is none of ours, ConfigError for the device."""
    document = _read(path)
    _check_device(device)
    try:
        model = build(document["config"], allowed=("sam_train.model",))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config builds no model: {error}") from error
    if not isinstance(model, Sam):
        raise CheckpointError(f"{path}: its config builds no model but a {type(model).__name__}")
    if strangers := [k for k, v in document["model"].items() if not isinstance(v, torch.Tensor)]:
        raise CheckpointError(f"{path}: these of its weights are no tensors: {strangers[:5]}")
    load_weights(model, document["model"], origin=str(path))
    return model.eval().to(device)


def load_weights(model: Sam, state: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Load `state` strictly. Raises CheckpointError that names what is missing, unexpected or of another shape."""
    own = model.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{origin} does not fit the model: {shown}")
    model.load_state_dict(dict(state))


def checkpoint_hash(path: Path) -> str:
    """SHA-256 of the file, hex."""
    _require(path)
    return file_sha256(path)


def _read(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file is wrong
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is no checkpoint ({reason}): give the model.pt that sam-train wrote") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {FORMAT} checkpoint; give the model.pt that sam-train wrote")
    for part in ("model", "config"):
        if not isinstance(document.get(part), dict):
            raise CheckpointError(f"{path}: its {part!r} is missing or no dictionary; give the model.pt that sam-train wrote")
    return document


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has no one type for a device that is not there
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={device} cannot be used here ({reason}): device=cpu always can") from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give the model.pt of a run, for example runs/<name>/model.pt")
