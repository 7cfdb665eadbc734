"""Find the state dict of a Segment Anything model in a file of another program.

Programs that fine-tune the model save it inside a dictionary (MedSAM: "model", micro-sam: "model_state", Lightning:
"state_dict"), and as a part of another module, whose name then begins the names of all tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sam_train.errors import CheckpointError
from sam_train.model.weights import detect_naming_scheme
from sam_train.weights import ACCEPTED_CHECKPOINTS

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "weights", "net", "network")
"""Keys under which programs store a state dict, in the order in which they are tried."""
PREFIXES = ("model.", "sam.", "sam_model.", "net.", "network.")
"""Names of the model inside another module."""
_WRAPPER_NAMES = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of tensor names that DataParallel, DDP, torch.compile, FSDP and activation checkpointing add, at any place."""


def extract_state_dict(document: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a loaded file of another program, without containers, wrappers and prefixes.

    Tensors beside those of the model are left out if the model is a part of another module. A state dict in which no model is
    found is returned as it is, without wrappers.

    Raises CheckpointError if the file holds no tensors.
    """
    state = document
    while isinstance(state, Mapping) and (inner := _container(state)) is not None:
        state = inner
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected weights: give {ACCEPTED_CHECKPOINTS}")
    check_all_tensors(state, path)
    unwrapped = {_WRAPPER_NAMES.sub("", str(name)): tensor for name, tensor in state.items()}
    return _without_prefix(unwrapped) or unwrapped


def check_all_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """Raise CheckpointError if a value is not a tensor."""
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: these entries of its weights are not tensors: {others[:5]}")


def _container(document: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((document[key] for key in CONTAINERS if isinstance(document.get(key), Mapping)), None)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the part of a state dict that is a model of a known naming scheme, None if there is none."""
    if detect_naming_scheme(state) is not None:
        return state
    for prefix in PREFIXES:
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if part and (found := _without_prefix(part)) is not None:
            return found
    return None
