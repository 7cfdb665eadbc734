"""Read the files of a checkpoint: the weights, and the config and provenance if they are stored."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from sam_train.checkpoint.run_checkpoint import is_run_checkpoint, read_run_checkpoint
from sam_train.checkpoint.unwrapping import check_all_tensors, extract_state_dict
from sam_train.errors import CheckpointError
from sam_train.files import file_sha256
from sam_train.model import huggingface
from sam_train.model.weights import NamingScheme, convert_released_state, detect_naming_scheme, infer_config
from sam_train.renames import upgrade_config
from sam_train.weights import ACCEPTED_CHECKPOINTS, checkpoint_files, resolve_checkpoint

FORMAT = "sam-train/1"
METADATA_KEY = "sam_train"
"""Key of a safetensors file's metadata that holds format, config and provenance as JSON."""
_ANSI_CODE = re.compile(r"\x1b\[[0-9;]*m")


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
    """Return the SHA-256 of the checkpoint's file as hex digits; of several files, that of the list of their names and hashes.

    Raises CheckpointError if there is no such checkpoint.
    """
    files = checkpoint_files(checkpoint)
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("".join(f"{file_sha256(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> Checkpoint:
    """Return weights, config and provenance of a checkpoint of this project, or of released weights.

    checkpoint: path, or name of `sam_train.weights.NAMED_WEIGHTS`.
    Raises CheckpointError if it does not hold a full model.
    """
    return full_model(read_stored_weights(checkpoint))


def full_model(stored: StoredWeights) -> Checkpoint:
    """Return stored weights under the names of this project with their config, which is inferred for released weights.

    Raises CheckpointError if they are not those of a full model.
    """
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
    files = checkpoint_files(checkpoint)
    documents = [_read_file(file) for file in files]
    if len(files) > 1:
        state = {name: tensor for document in documents for name, tensor in extract_state_dict(document, path).items()}
        return StoredWeights(state=state, config=None, provenance={}, path=path)
    (document,) = documents
    if isinstance(document, dict) and "format" in document:
        _check_project_document(document, path)
        config, provenance = upgrade_config(document["config"]), dict(document.get("provenance") or {})
        return StoredWeights(state=document["model"], config=config, provenance=provenance, path=path)
    if is_run_checkpoint(document, files[0]):
        state, config, provenance = read_run_checkpoint(document, files[0])
        return StoredWeights(state=state, config=config, provenance=provenance, path=path)
    return StoredWeights(state=extract_state_dict(document, path), config=None, provenance={}, path=path)


def is_image_encoder_only(stored: StoredWeights) -> bool:
    """Return whether the file holds the image encoder of a masked auto-encoder and no full model."""
    return stored.config is None and detect_naming_scheme(stored.state) is NamingScheme.MAE


def _read_file(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch and safetensors raise different exception types for different kinds of invalid files
        text = _ANSI_CODE.sub("", str(error))
        reason = f"{type(error).__name__}: {text}".partition("\n")[0]
        if isinstance(error, UnpicklingError) and "Unsupported" in text:
            reason = (
                "it holds Python objects beside tensors, which are not loaded because they can run code; in the program that "
                "wrote it, save the model alone: torch.save(model.state_dict(), FILE)"
            )
        raise CheckpointError(f"{file} is not a checkpoint ({reason}): give {ACCEPTED_CHECKPOINTS}") from error


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
    check_all_tensors(document["model"], path)


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
