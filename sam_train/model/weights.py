"""Released weights in: whose names a state dict has, the same in our names, and the config of the model that it fills.

Our names are those of Meta's `sam_vit_{b,l,h}.pth` and of MobileSAM's `mobile_sam.pt`; Hugging Face's differ
(`huggingface.py`), and a masked auto-encoder is an image encoder alone (`mae.py`). Everything here is a function of names and
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

StateDict = Mapping[str, Tensor]

RELEASED_WEIGHTS = (
    "released weights (.pth or .safetensors of Meta's sam_vit_b, _l, _h or of MobileSAM, a folder of Hugging Face's SamModel)"
)
ACCEPTED_CHECKPOINTS = f"the model.pt that sam-train wrote, or {RELEASED_WEIGHTS}"
"""What a checkpoint may be, for messages."""


class NamingScheme(Enum):
    """Whose names a state dict has."""

    SEGMENT_ANYTHING = "segment-anything"
    MOBILE_SAM = "MobileSAM"
    HUGGING_FACE = "Hugging Face"
    MAE = "masked auto-encoder"


_MARKS = {
    "image_encoder.patch_embed.proj.weight": NamingScheme.SEGMENT_ANYTHING,
    "image_encoder.patch_embed.seq.0.c.weight": NamingScheme.MOBILE_SAM,
    "vision_encoder.patch_embed.projection.weight": NamingScheme.HUGGING_FACE,
    "patch_embed.proj.weight": NamingScheme.MAE,
}

# Constants that some forks save, and the classifier with which TinyViT was trained before it became an image encoder.
_UNUSED = re.compile(r"pixel_(mean|std)$|image_encoder\.(norm_head|head)\.(weight|bias)$")


def detect_naming_scheme(state: StateDict) -> NamingScheme | None:
    """Whose names these are, by the first layer; None of anything else."""
    return next((names for mark, names in _MARKS.items() if mark in state), None)


def convert_released_state(state: StateDict, *, origin: str) -> dict[str, Tensor]:
    """A whole model's state dict under our names, without what no model of ours has.

    Raises CheckpointError, which begins with `origin`, when it is none.
    """
    names = detect_naming_scheme(state)
    if names is NamingScheme.MAE:
        raise CheckpointError(f"{origin} is an image encoder alone (a masked auto-encoder): train from it by init_checkpoint=")
    if names is None:
        first = ", ".join(list(state)[:3]) or "nothing"
        raise CheckpointError(
            f"{origin} holds {len(state)} tensors ({first} ...) but is no model known here: give {ACCEPTED_CHECKPOINTS}"
        )
    named = huggingface.convert_from_huggingface(state) if names is NamingScheme.HUGGING_FACE else state
    return {name: tensor for name, tensor in named.items() if not _UNUSED.match(name)}


def infer_config(state: StateDict, *, origin: str, decoder_heads: int = 8) -> dict[str, Any]:
    """The config whose model a state dict of our names fills, read off the shapes.

    decoder_heads: attention heads of the mask decoder, which no shape tells; all released models have 8.
    Raises CheckpointError, which begins with `origin`, when shapes are missing or contradict each other.
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
        raise CheckpointError(f"{origin} misses {error.args[0]}: give {ACCEPTED_CHECKPOINTS}") from error
    except ValueError as error:
        raise CheckpointError(f"{origin}: {error}") from error


def _vit_config(state: StateDict) -> dict[str, Any]:
    embed_dim, _, patch_size, _ = state["image_encoder.patch_embed.proj.weight"].shape
    grid, blocks = state["image_encoder.pos_embed"].shape[1], "image_encoder.blocks."
    tables = [state[f"{blocks}{i}.attn.rel_pos_h"].shape for i in range(_count(state, blocks))]
    windows = {(rows + 1) // 2 for rows, _ in tables if rows != 2 * grid - 1}
    if len(windows) > 1:
        raise ValueError(f"its blocks have windows of {sorted(windows)} tokens on a grid of {grid}; one size was expected")
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
    """No weight depends on the size of the image; 1024 is the released one."""
    stages = range(_count(state, "image_encoder.layers."))
    biases = [state[f"image_encoder.layers.{i}.blocks.0.attn.attention_biases"].shape for i in stages[1:]]
    widths = [state[f"image_encoder.layers.{i}.downsample.conv3.c.weight"] for i in stages[:-1]]
    return {
        "_target_": "sam_train.model.build.build_mobile_sam",
        "image_size": 1024,
        "embed_dims": [len(state["image_encoder.patch_embed.seq.2.c.weight"]), *map(len, widths)],
        "depths": [_count(state, f"image_encoder.layers.{i}.blocks.") for i in stages],
        "num_heads": [2, *(heads for heads, _ in biases)],  # the first stage has no attention: as released
        "window_sizes": [7, *(math.isqrt(places) for _, places in biases)],
        "freeze_batch_norm": True,
    }


def _count(state: StateDict, prefix: str) -> int:
    """How many numbers follow `prefix`. Raises KeyError for none."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    if not numbers:
        raise KeyError(f"{prefix}0")
    return len(numbers)


def shape_mismatches(own: StateDict, state: StateDict) -> list[str]:
    """What keeps `state` from being loaded where `own` is: names missing, unexpected, of another shape, in turns."""
    missing = [f"missing {name}" for name in own if name not in state]
    unexpected = [f"unexpected {name}" for name in state if name not in own]
    misshapen = [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return [problem for turn in zip_longest(missing, unexpected, misshapen) for problem in turn if problem]


def check_shapes(problems: list[str], *, origin: str, hint: str = "") -> None:
    """Raise CheckpointError with the first five of `problems` and their number, if there are any."""
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{origin} does not fit the model: {shown}{hint}")
