"""Read the files of a checkpoint: the weights, and the config and provenance if they are stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from sam_train.errors import CheckpointError
from sam_train.files import file_sha256
from sam_train.model import huggingface
from sam_train.model.weights import (
    ACCEPTED_CHECKPOINTS,
    RELEASED_WEIGHTS,
    NamingScheme,
    convert_released_state,
    detect_naming_scheme,
    infer_config,
)
from sam_train.renames import upgrade_config
from sam_train.weights import resolve_checkpoint

FORMAT = "sam-train/1"
METADATA_KEY = "sam_train"
"""Key of a safetensors file's metadata that holds format, config and provenance as JSON."""
HUGGING_FACE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Content of a checkpoint's files."""

    state: dict[str, Tensor]
    """Weights, under the names of the file."""
    config: dict[str, Any] | None
    """Config that builds the model; None in files of other programs."""
    provenance: dict[str, Any]
    """Origin of the weights as `save_checkpoint` stored it, else empty."""
    path: Path
    """File, or folder of several files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as plain values."""

    state: dict[str, Tensor]
    """Weights, under the names of this project."""
    config: dict[str, Any]
    """Config that builds the model."""
    provenance: dict[str, Any]
    """Origin of the weights, empty for released ones."""


def checkpoint_hash(checkpoint: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the checkpoint file as hex digits; for a Hugging Face folder, that of its weights file.

    Raises CheckpointError if there is no such checkpoint.
    """
    return file_sha256(_weights_file(resolve_checkpoint(checkpoint)))


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> Checkpoint:
    """Return weights, config and provenance of a checkpoint of this project, or of released weights.

    checkpoint: path, or name of `sam_train.weights.NAMED_WEIGHTS`.
    Raises CheckpointError if it does not hold a full model.
    """
    stored = read_stored_weights(checkpoint)
    if stored.config is not None:
        return Checkpoint(state=stored.state, config=stored.config, provenance=stored.provenance)
    origin = str(stored.path)
    state = convert_released_state(stored.state, origin=origin)
    return Checkpoint(
        state=state, config=infer_config(state, origin=origin, decoder_heads=_decoder_heads(stored.path)), provenance={}
    )


def read_stored_weights(checkpoint: str | os.PathLike[str]) -> StoredWeights:
    """Return what the files of a checkpoint hold; those of other programs as they are.

    Raises CheckpointError if there is no readable checkpoint.
    """
    path = resolve_checkpoint(checkpoint)
    file = _weights_file(path)
    try:
        document = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    except CheckpointError:
        raise
    except Exception as error:  # torch and safetensors raise different exception types for different kinds of invalid files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint ({reason}): give {ACCEPTED_CHECKPOINTS}") from error
    if not isinstance(document, dict) or "format" not in document:
        return StoredWeights(state=_extract_state_dict(document, path), config=None, provenance={}, path=path)
    _check_project_document(document, path)
    return StoredWeights(
        state=document["model"],
        config=upgrade_config(document["config"]),
        provenance=dict(document.get("provenance") or {}),
        path=path,
    )


def is_image_encoder_only(stored: StoredWeights) -> bool:
    """Return whether the file holds the image encoder of a masked auto-encoder and no full model."""
    return stored.config is None and detect_naming_scheme(stored.state) is NamingScheme.MAE


def _read_torch(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(file: Path) -> dict[str, Any]:
    state = safetensors.torch.load_file(file)
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata() or {}
    if METADATA_KEY not in metadata:
        return state
    document = json.loads(metadata[METADATA_KEY])
    if not isinstance(document, dict):
        raise CheckpointError(f"{file}: its metadata {METADATA_KEY!r} is a {type(document).__name__}, expected an object")
    return {"format": None, **document, "model": state}


def _check_project_document(document: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for another format version and for missing or invalid parts."""
    if document["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {document['format']!r}, this version reads {FORMAT!r}: give {ACCEPTED_CHECKPOINTS}"
        )
    for part in ("model", "config"):
        if not isinstance(document.get(part), dict):
            raise CheckpointError(f"{path}: its {part!r} is missing or not a dictionary; give the model.pt that sam-train wrote")
    _check_all_tensors(document["model"], path)


def _extract_state_dict(document: Any, path: Path) -> dict[str, Tensor]:
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
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
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


def _weights_file(path: Path) -> Path:
    file = path / HUGGING_FACE_WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}: give the model.pt of a run, for example runs/<name>/model.pt, or {RELEASED_WEIGHTS}"
        )
    return file
