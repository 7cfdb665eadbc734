"""The image encoder: ViTDet as SAM adapts it (paper, section A; segment_anything/modeling/image_encoder.py).

Windowed attention with a few global blocks, absolute and decomposed relative positions, and a neck that brings
the width to that of the decoder. State-dict keys are the released ones. `stem="conv"` is ours: three
stride-2 convolutions in place of the linear patch embedding, which a small ViT needs to learn from scratch in
minutes (Xiao et al., "Early convolutions help transformers see better").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.layers import DropPath, LayerNorm2d, MLPBlock


class ImageEncoder(nn.Module):
    """B 3 S S normalised pixels to B C h w image embeddings, h = w = S / patch_size."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_attn_indexes: Sequence[int],
        window_size: int,
        out_chans: int,
        use_rel_pos: bool = True,
        drop_path_rate: float = 0.0,
        stem: str = "linear",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.image_size, self.depth = image_size, depth
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim) if stem == "linear" else ConvStem(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = torch.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                window_size=0 if i in global_attn_indexes else window_size,
                input_size=grid,
                use_rel_pos=use_rel_pos,
                drop_path=rates[i],
            )
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self.apply(_init_weights)

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C h w"]:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class PatchEmbed(nn.Module):
    """One linear map a patch."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B h w C"]:
        return self.proj(x).permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Stride-2 convolutions down to the patch grid, widths doubling up to `embed_dim`."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        if 2**steps != patch_size or steps < 1:
            raise ValueError(f"a convolutional stem needs a power of two as patch_size, got {patch_size}")
        widths = [3, *[max(24, embed_dim // 2 ** (steps - i)) for i in range(1, steps + 1)]]
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), LayerNorm2d(o), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B h w C"]:
        return self.layers(x).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A pre-norm transformer block; window_size 0 means global attention."""

    def __init__(
        self, dim: int, num_heads: int, *, window_size: int, input_size: int, use_rel_pos: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, input_size=window_size or input_size, use_rel_pos=use_rel_pos)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        shortcut, x = x, self.norm1(x)
        if self.window_size:
            windows, padded_hw = window_partition(x, self.window_size)
            x = window_unpartition(self.attn(windows), self.window_size, padded_hw, shortcut.shape[1:3])
        else:
            x = self.attn(x)
        x = shortcut + self.drop_path(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head attention over an h x w map with decomposed relative positions."""

    def __init__(self, dim: int, num_heads: int, *, input_size: int, use_rel_pos: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, dim // num_heads))

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        b, h, w, c = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._relative_positions(q, h, w) if self.use_rel_pos else None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, c))

    def _relative_positions(self, q: Float[Tensor, "B n L d"], h: int, w: int) -> Float[Tensor, "B n L L"]:
        # The unscaled query meets the position tables, while q . k is scaled: as released.
        table_h, table_w = _gather_rel_pos(self.rel_pos_h, h), _gather_rel_pos(self.rel_pos_w, w)
        grid = q.reshape(*q.shape[:2], h, w, -1)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, table_h)
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, table_w)
        return (rel_h[..., :, None] + rel_w[..., None, :]).reshape(*q.shape[:2], h * w, h * w)


def _gather_rel_pos(rel_pos: Float[Tensor, "R d"], size: int) -> Float[Tensor, "size size d"]:
    """The table entry for every (query, key) distance along one axis, interpolated if the size differs."""
    distances = 2 * size - 1
    if len(rel_pos) != distances:
        rel_pos = F.interpolate(rel_pos.T[None], distances, mode="linear")[0].T
    position = torch.arange(size, device=rel_pos.device)
    return rel_pos[position[:, None] - position[None, :] + size - 1]


def window_partition(x: Float[Tensor, "B h w C"], size: int) -> tuple[Float[Tensor, "W size size C"], tuple[int, int]]:
    """Zero-pad to a multiple of `size` and cut into windows; also the padded height and width."""
    b, h, w, c = x.shape
    padded_h, padded_w = -(-h // size) * size, -(-w // size) * size
    x = F.pad(x, (0, 0, 0, padded_w - w, 0, padded_h - h))
    x = x.view(b, padded_h // size, size, padded_w // size, size, c)
    return x.transpose(2, 3).reshape(-1, size, size, c), (padded_h, padded_w)


def window_unpartition(
    windows: Float[Tensor, "W size size C"], size: int, padded_hw: tuple[int, int], hw: Sequence[int]
) -> Float[Tensor, "B h w C"]:
    """The inverse of `window_partition`, padding cut off."""
    rows, columns = padded_hw[0] // size, padded_hw[1] // size
    x = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, *padded_hw, windows.shape[-1])[:, : hw[0], : hw[1]]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
