"""The files that hold the weights of a checkpoint: one file, the folder of a run, or a folder of Hugging Face."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sam_train.errors import CheckpointError
from sam_train.weights.names import NAMED_WEIGHTS, resolve_checkpoint

RELEASED_WEIGHTS = (
    "released weights (.pth or .safetensors of Meta's sam_vit_b, _l, _h or of MobileSAM, a folder of Hugging Face's SamModel)"
)
"""Released weights that can be read, for messages."""
ACCEPTED_CHECKPOINTS = (
    f"a run (its folder, model.pt or .ckpt), the model.safetensors that sam-export wrote, {RELEASED_WEIGHTS}, "
    f"or a name ({', '.join(NAMED_WEIGHTS)})"
)
"""Checkpoints that can be read, for messages."""

_FILES_OF_FOLDER = (
    "model.pt",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoints/last.ckpt",
)
"""Files that hold the weights of a folder; the first that exists counts. An index names the parts of a model in several files."""


def checkpoint_files(checkpoint: str | os.PathLike[str]) -> list[Path]:
    """Return the files that hold the weights of a checkpoint: one, or all parts of a Hugging Face model in several files.

    checkpoint: path of a file or folder, or a name. Of the folder of a run it is model.pt, or the last checkpoint of a run that
        has no model.pt yet.

    Raises CheckpointError if there is none, or if a part is missing.
    """
    path = resolve_checkpoint(checkpoint)
    if path.is_file():
        return [path]
    found = next((path / name for name in _FILES_OF_FOLDER if (path / name).is_file()), None)
    if found is None:
        what = f"the folder {path} holds no weights" if path.is_dir() else f"no checkpoint at {path}"
        raise CheckpointError(f"{what}: give {ACCEPTED_CHECKPOINTS}")
    return _parts(found) if found.name.endswith(".index.json") else [found]


def _parts(index: Path) -> list[Path]:
    """Return the files that an index names. Only names of files beside it are accepted."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of weights ({type(error).__name__}: {error}): download the folder again"
        ) from error
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index} names {outside[0]!r}: expected the name of a file beside it")
    if not names or (missing := [name for name in names if not (index.parent / name).is_file()]):
        raise CheckpointError(
            f"{index.parent} lacks {missing[0] if names else 'any part'}, which {index.name} names: download it"
        )
    return [index.parent / name for name in names]
