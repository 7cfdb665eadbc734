"""A masked auto-encoder's ViT into our image encoder: MAE's own files and timm's, whose names are nearly the same.

The encoder was trained on other grids and patches. Positions are interpolated (bicubic, as ViTDet does). Patches of
another size, MAE's ViT-H has 14 where SAM has 16, are resized by the pseudo-inverse (FlexiViT, Beyer et al. 2023, section 3.4):
the new kernel gives on an enlarged patch exactly what the old one gave on the patch, while an interpolated kernel would
answer (16 / 14)^2 times as strongly.
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
from sam_train.model.weights import check_shapes, shape_mismatches

_DROPPED = re.compile(r"cls_token$|mask_token$|norm\.|fc_norm\.|head\.|decoder_")
_OURS_ALONE = re.compile(r"neck\.|blocks\.\d+\.attn\.rel_pos_[hw]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaeLoadReport:
    """What became of the names: taken from the file, dropped of it, left as they were in the model."""

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]

    def __str__(self) -> str:
        kinds = (("loaded", self.loaded), ("dropped", self.dropped), ("left as initialised", self.initialised))
        return "; ".join(f"{len(names)} tensors {what}" + _some(names) for what, names in kinds)


def _some(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def load_mae_encoder(encoder: torch.nn.Module, state: Mapping[str, Tensor], *, origin: str) -> MaeLoadReport:
    """Fill a ViT `ImageEncoder`; relative positions and neck stay as they are, a decoder and a classifier are dropped.

    Raises CheckpointError, which begins with `origin`, when anything else is missing, unexpected or of another shape.
    """
    own = encoder.state_dict()
    found = {_our_name(name): tensor for name, tensor in state.items() if not _DROPPED.match(name)}
    if "pos_embed" in found and "pos_embed" in own:
        found["pos_embed"] = resize_position_embeddings(found["pos_embed"], own["pos_embed"].shape[1])
    kernel = "patch_embed.proj.weight"
    if kernel in found and kernel in own:
        found[kernel] = resize_patch_kernel(found[kernel], own[kernel].shape[-1])
    kept = {name: tensor for name, tensor in own.items() if _OURS_ALONE.match(name)}
    hint = ": a masked auto-encoder fits an image encoder of its width and depth with model.stem=linear"
    check_shapes(shape_mismatches(own, kept | found), origin=origin, hint=hint)
    encoder.load_state_dict(kept | found)
    dropped = tuple(name for name in state if _DROPPED.match(name))
    return MaeLoadReport(loaded=tuple(found), dropped=dropped, initialised=tuple(name for name in kept if name not in found))


def _our_name(name: str) -> str:
    return name.replace(".mlp.fc1.", ".mlp.lin1.").replace(".mlp.fc2.", ".mlp.lin2.")


def resize_position_embeddings(positions: Float[Tensor, "1 L C"], grid: int) -> Float[Tensor, "1 grid grid C"]:
    """A row a token, perhaps a class token first, to a map of `grid` x `grid` tokens; a map of that size is left as it is.

    Raises CheckpointError when the rows are no square map.
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
    """The kernel for patches of `size` whose answer to a resized patch is nearest to that of `kernel` to the patch."""
    old = kernel.shape[-1]
    if old == size:
        return kernel
    pixels = torch.eye(old**2, dtype=torch.float64).view(old**2, 1, old, old)
    resize = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False).flatten(1)  # patch @ resize
    return (kernel.double().flatten(2) @ torch.linalg.pinv(resize).T).unflatten(-1, (size, size)).to(kernel.dtype)
