"""The registry of weights that have a name, and the path that a checkpoint argument refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sam_train.errors import CheckpointError

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """Weights that are a file of this package.

    file: name of the file in the folder of `sam_train.weights`.
    description: what the weights are, for help and messages.
    """

    file: str
    description: str

    def locate(self, name: str) -> Path:
        """Return the path of the file. Raises CheckpointError if this installation lacks it."""
        path = _FOLDER / self.file
        if not path.is_file():
            raise CheckpointError(
                f"the weights {name!r} are not part of this installation: {path} is missing; install the package again, or give "
                "a file: the model.pt of a run or released weights"
            )
        return path


NAMED_WEIGHTS: Mapping[str, PackagedWeights] = {
    "starter": PackagedWeights(file="starter.safetensors", description="a small model that is part of this package"),
}
"""Weights by name."""


def is_weights_name(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether a checkpoint argument is a registered name. A `Path` never is: a file of that name is `./NAME` as a text."""
    return isinstance(checkpoint, str) and checkpoint in NAMED_WEIGHTS


def resolve_checkpoint(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the path that a checkpoint argument refers to: that of the named weights, or the argument as a path.

    "~" is expanded. Whether a path exists is not checked. Raises CheckpointError if named weights are unavailable.
    """
    if isinstance(checkpoint, str) and checkpoint in NAMED_WEIGHTS:
        return NAMED_WEIGHTS[checkpoint].locate(checkpoint)
    return Path(checkpoint).expanduser()
