"""Initialization of the image encoder from a masked auto-encoder's ViT: MAE's files and timm's, whose names are nearly the same.

The MAE may have another grid and patch size. Position embeddings are interpolated (bicubic, as ViTDet does). Patch kernels
of another size (MAE's ViT-H has 14 pixels where SAM has 16) are resized by the pseudo-inverse (FlexiViT, Beyer et al. 2023,
section 3.4): the new kernel has on an enlarged patch exactly the output of the old one on the patch, while the output of an
interpolated kernel would be (16 / 14)^2 times as large.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sam_train.errors import CheckpointError
from sam_train.model.weights import check_state_dict

_DROPPED = re.compile(r"cls_token$|mask_token$|norm\.|fc_norm\.|head\.|decoder_")
_NOT_IN_MAE = re.compile(r"neck\.|blocks\.\d+\.attn\.rel_pos_[hw]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaeLoadReport:
    """Names of the tensors that `load_mae_encoder` loaded, dropped and left initialised; `str` gives a summary."""

    loaded: tuple[str, ...]
    """Tensors of the encoder that come from the file."""
    dropped: tuple[str, ...]
    """Tensors of the file that are not used."""
    initialised: tuple[str, ...]
    """Tensors of the encoder that are not in the file and keep their initialization."""

    def __str__(self) -> str:
        groups = (("loaded", self.loaded), ("dropped", self.dropped), ("left as initialised", self.initialised))
        return "; ".join(f"{len(names)} tensors {outcome}" + _first_names(names) for outcome, names in groups)


def _first_names(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def load_mae_encoder(encoder: torch.nn.Module, state: Mapping[str, Tensor], *, origin: str) -> MaeLoadReport:
    """Load a masked auto-encoder's weights into a ViT `ImageEncoder`.

    Relative positions and the neck keep their initialization; the MAE's decoder and classifier are dropped. Raises
    CheckpointError, which begins with `origin`, if any other tensor is missing, unexpected or of another shape.
    """
    expected = encoder.state_dict()
    loaded = {_encoder_name(name): tensor for name, tensor in state.items() if not _DROPPED.match(name)}
    if "pos_embed" in loaded and "pos_embed" in expected:
        loaded["pos_embed"] = resize_position_embeddings(loaded["pos_embed"], expected["pos_embed"].shape[1])
    kernel = "patch_embed.proj.weight"
    if kernel in loaded and kernel in expected:
        loaded[kernel] = resize_patch_kernel(loaded[kernel], expected[kernel].shape[-1])
    kept = {name: tensor for name, tensor in expected.items() if _NOT_IN_MAE.match(name)}
    hint = ": a masked auto-encoder fits an image encoder of its width and depth with model.stem=linear"
    check_state_dict(expected, kept | loaded, origin=origin, hint=hint)
    encoder.load_state_dict(kept | loaded)
    dropped = tuple(name for name in state if _DROPPED.match(name))
    return MaeLoadReport(loaded=tuple(loaded), dropped=dropped, initialised=tuple(name for name in kept if name not in loaded))


def _encoder_name(name: str) -> str:
    return name.replace(".mlp.fc1.", ".mlp.lin1.").replace(".mlp.fc2.", ".mlp.lin2.")


def resize_position_embeddings(positions: Float[Tensor, "1 L C"], grid: int) -> Float[Tensor, "1 grid grid C"]:
    """Resize the position embeddings of a ViT, one row per token and possibly a class token first, to `grid` x `grid` tokens.

    Values are unchanged if the size is the same. Raises CheckpointError if the rows do not form a square map.
    """
    rows = positions.shape[1]
    side = math.isqrt(rows)
    if rows - side**2 > 1:
        raise CheckpointError(f"pos_embed has {rows} rows: expected a square number, or one more for a class token")
    table = positions[:, rows - side**2 :].unflatten(1, (side, side))
    if side == grid:
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), (grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(positions.dtype)


def resize_patch_kernel(kernel: Float[Tensor, "C i p q"], size: int) -> Float[Tensor, "C i size size"]:
    """Resize a patch embedding kernel to patches of `size` pixels, so that its output on a resized patch changes least."""
    old = kernel.shape[-1]
    if old == size:
        return kernel
    pixels = torch.eye(old**2, dtype=torch.float64).view(old**2, 1, old, old)
    resize = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False).flatten(1)  # patch @ resize
    return (kernel.double().flatten(2) @ torch.linalg.pinv(resize).T).unflatten(-1, (size, size)).to(kernel.dtype)
