"""Import of released weights: detect the naming scheme of a state dict, convert it, and infer the model config from shapes.

This project's tensor names are those of Meta's `sam_vit_{b,l,h}.pth` and of MobileSAM's `mobile_sam.pt`; Hugging Face's differ
(`huggingface.py`), and a masked auto-encoder is an image encoder only (`mae.py`). All functions here depend only on names and
shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from itertools import zip_longest
from typing import Any

from torch import Tensor

from sam_train.errors import CheckpointError
from sam_train.model import huggingface
from sam_train.model.sam import Sam
from sam_train.weights import ACCEPTED_CHECKPOINTS

StateDict = Mapping[str, Tensor]

TEXT_PREFIX = "prompt_encoder.text_projection."
"""Prefix of the tensors that only a model with text prompts has."""

MASK_STATISTICS_PREFIX = "mask_decoder.mask_statistics_head."
"""Prefix of the tensors that only a model with `iou_from_masks` has."""

ADDED_PARTS = {TEXT_PREFIX: "text projection", MASK_STATISTICS_PREFIX: "mask statistics head"}
"""Prefix and name of the parts that a model may have beside those of released models: training may add them to any weights."""


class NamingScheme(Enum):
    """Program whose tensor names a state dict has."""

    SEGMENT_ANYTHING = "segment-anything"
    MOBILE_SAM = "MobileSAM"
    HUGGING_FACE = "Hugging Face"
    MAE = "masked auto-encoder"


_MARKER_TENSORS = {
    "image_encoder.patch_embed.proj.weight": NamingScheme.SEGMENT_ANYTHING,
    "image_encoder.patch_embed.seq.0.c.weight": NamingScheme.MOBILE_SAM,
    "vision_encoder.patch_embed.projection.weight": NamingScheme.HUGGING_FACE,
    "patch_embed.proj.weight": NamingScheme.MAE,
}

# Constants that some forks save, and the classification head with which TinyViT was pre-trained.
_UNUSED = re.compile(r"pixel_(mean|std)$|image_encoder\.(norm_head|head)\.(weight|bias)$")


def detect_naming_scheme(state: StateDict) -> NamingScheme | None:
    """Return the naming scheme of a state dict, detected by its first layer; None if unknown."""
    return next((scheme for marker, scheme in _MARKER_TENSORS.items() if marker in state), None)


def convert_released_state(state: StateDict, *, origin: str) -> dict[str, Tensor]:
    """Return the state dict of a full released model under this project's names, without tensors that are not used.

    origin: source of the weights, with which messages begin. Raises CheckpointError if it is not a full model of a known scheme.
    """
    scheme = detect_naming_scheme(state)
    if scheme is NamingScheme.MAE:
        raise CheckpointError(f"{origin} is only an image encoder (a masked auto-encoder): train from it by init_checkpoint=")
    if scheme is None:
        first = ", ".join(list(state)[:3]) or "none"
        raise CheckpointError(
            f"{origin} holds {len(state)} tensors ({first} ...) of an unknown model: give {ACCEPTED_CHECKPOINTS}"
        )
    converted = huggingface.convert_from_huggingface(state) if scheme is NamingScheme.HUGGING_FACE else state
    return {name: tensor for name, tensor in converted.items() if not _UNUSED.match(name)}


def infer_config(state: StateDict, *, origin: str, decoder_heads: int = 8) -> dict[str, Any]:
    """Infer the model config of a state dict with this project's names from its shapes.

    decoder_heads: attention heads of the mask decoder, which shapes do not determine; all released models have 8.
    Raises CheckpointError, which begins with `origin`, if tensors are missing or shapes contradict each other.
    """
    try:
        tiny = detect_naming_scheme(state) is NamingScheme.MOBILE_SAM
        config = _tiny_vit_config(state) if tiny else _vit_config(state)
        transformer = "mask_decoder.transformer.layers."
        return config | {
            "prompt_dim": len(state["image_encoder.neck.0.weight"]),
            "decoder_mlp_dim": len(state[f"{transformer}0.mlp.lin1.weight"]),
            "decoder_depth": _count(state, transformer),
            "decoder_heads": decoder_heads,
        }
    except KeyError as error:
        raise CheckpointError(f"{origin} lacks {error.args[0]}: give {ACCEPTED_CHECKPOINTS}") from error
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _vit_config(state: StateDict) -> dict[str, Any]:
    embed_dim, _, patch_size, _ = state["image_encoder.patch_embed.proj.weight"].shape
    grid, blocks = state["image_encoder.pos_embed"].shape[1], "image_encoder.blocks."
    tables = [state[f"{blocks}{i}.attn.rel_pos_h"].shape for i in range(_count(state, blocks))]
    windows = {(rows + 1) // 2 for rows, _ in tables if rows != 2 * grid - 1}
    if len(windows) > 1:
        raise ValueError(f"its blocks have windows of {sorted(windows)} tokens on a grid of {grid}; expected one window size")
    return {
        "_target_": "sam_train.model.build.build_sam",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": len(tables),
        "num_heads": embed_dim // tables[0][1],
        "global_attn_indexes": [i for i, (rows, _) in enumerate(tables) if rows == 2 * grid - 1],
        "window_size": windows.pop() if windows else 14,
    }


def _tiny_vit_config(state: StateDict) -> dict[str, Any]:
    """Infer the config of MobileSAM. No weight depends on the image size; 1024 is the released one."""
    stages = range(_count(state, "image_encoder.layers."))
    biases = [state[f"image_encoder.layers.{i}.blocks.0.attn.attention_biases"].shape for i in stages[1:]]
    widths = [state[f"image_encoder.layers.{i}.downsample.conv3.c.weight"] for i in stages[:-1]]
    return {
        "_target_": "sam_train.model.build.build_mobile_sam",
        "image_size": 1024,
        "embed_dims": [len(state["image_encoder.patch_embed.seq.2.c.weight"]), *map(len, widths)],
        "depths": [_count(state, f"image_encoder.layers.{i}.blocks.") for i in stages],
        "num_heads": [2, *(heads for heads, _ in biases)],  # the first stage has no attention: as released
        "window_sizes": [7, *(math.isqrt(distances) for _, distances in biases)],
        "freeze_batch_norm": True,
    }


def _count(state: StateDict, prefix: str) -> int:
    """Count the distinct indices that follow `prefix` in tensor names. Raises KeyError if there is none."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    if not numbers:
        raise KeyError(f"{prefix}0")
    return len(numbers)


def load_weights(model: Sam, state: StateDict, *, origin: str) -> None:
    """Load `state` strictly.

    origin: source of the weights, for messages. Raises CheckpointError, which names the tensors that are missing, unexpected
    or of another shape.
    """
    expected = model.state_dict()
    unexpected = [name for name in state if name not in expected]
    hint = ""
    if text_tensors := [name for name in unexpected if name.startswith(TEXT_PREFIX)]:
        hint = f" (it accepts text prompts: set model.text_dim={state[text_tensors[0]].shape[-1]})"
    elif any(name.startswith(MASK_STATISTICS_PREFIX) for name in unexpected):
        hint = " (its IoU scores are also computed from the masks: set +model.iou_from_masks=true)"
    check_state_dict(expected, state, origin=origin, hint=hint)
    model.load_state_dict(dict(state))


def check_state_dict(expected: StateDict, state: StateDict, *, origin: str, hint: str = "") -> None:
    """Raise CheckpointError unless `state` has the names and shapes of `expected`.

    The message begins with `origin`, lists the first five tensors that are missing, unexpected or of another shape, and ends
    with `hint`.
    """
    mismatches = _mismatches(expected, state)
    if mismatches:
        shown = "; ".join(mismatches[:5]) + (f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else "")
        raise CheckpointError(f"{origin} does not fit the model: {shown}{hint}")


def _mismatches(expected: StateDict, state: StateDict) -> list[str]:
    """Return messages on missing, unexpected and misshapen tensors, interleaved so that a short list shows every kind."""
    missing = [f"missing {name}" for name in expected if name not in state]
    unexpected = [f"unexpected {name}" for name in state if name not in expected]
    misshapen = [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return [mismatch for group in zip_longest(missing, unexpected, misshapen) for mismatch in group if mismatch]
