"""Multi-head attention over a map of tokens, windowed or global, with decomposed relative positions.

The bias that relative positions add to the scores is as large as the scores: 805 MB in a global block of a ViT-B at 1024
pixels. It is therefore computed for chunks of windows, heads and query rows, which is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sam_train.model.chunk_sizes import chunk_sizes_for


class Attention(nn.Module):
    """Attention of every token of an h x w map to the tokens of its window (segment_anything/modeling/image_encoder.py).

    window_size: side of the windows in tokens; 0 means global attention. Windows that exceed the map are padded with tokens
        that are zero before the projection to queries, keys and values and are attended to, as in the released code.
    input_size: side of the map for which a global block's relative positions are learned; they are interpolated for others.
    """

    def __init__(self, dim: int, num_heads: int, *, window_size: int, input_size: int, use_rel_pos: bool) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            distances = 2 * (window_size or input_size) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(distances, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(distances, dim // num_heads))

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        if not self.window_size:
            return self.proj(self._attend(self.qkv(x)))
        # Project before partitioning: padding tokens equal the bias, so they cost no product.
        windows, padded_hw = window_partition(self.qkv(x), self.window_size, padding=self.qkv.bias)
        return self.proj(window_unpartition(self._attend(windows), self.window_size, padded_hw, x.shape[1:3]))

    def _attend(self, qkv: Float[Tensor, "W r c D"]) -> Float[Tensor, "W r c C"]:
        """Attend within each map of r x c tokens; D = 3 C, queries, keys and values concatenated."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5).unbind(0)
        k, v = k.flatten(2, 3), v.flatten(2, 3)
        if self.use_rel_pos:
            tables = relative_position_table(self.rel_pos_h, q.shape[2]), relative_position_table(self.rel_pos_w, q.shape[3])
            x = relative_position_attention(q, k, v, *tables)
        else:
            x = F.scaled_dot_product_attention(q.flatten(2, 3), k, v)
        return x.transpose(1, 2).reshape(*qkv.shape[:3], -1)


def relative_position_attention(
    q: Float[Tensor, "W n q c d"],
    k: Float[Tensor, "W n L d"],
    v: Float[Tensor, "W n L d"],
    table_h: Float[Tensor, "q r d"],
    table_w: Float[Tensor, "c c d"],
) -> Float[Tensor, "W n Q d"]:
    """Return softmax(q . k / sqrt(d) + q . table_h + q . table_w) v for W maps of r x c tokens and n heads, L = r c.

    The queries are q of the r rows, Q = q c; the tables hold the relative position embedding of every query and key along
    an axis. The computation is split along W, n or q until the bias of a chunk is small enough.
    """
    maps, heads, rows, columns, _ = q.shape
    rows_per_chunk = chunk_sizes_for(q.device).attention_bias // (columns * k.shape[2])
    if maps * heads * rows <= max(1, rows_per_chunk):
        if torch.is_grad_enabled():
            # Recompute scores and bias of a chunk in the backward pass; otherwise those of all chunks would be kept.
            return checkpoint(_attend_unchunked, q, k, v, table_h, table_w, use_reentrant=False, preserve_rng_state=False)
        return _attend_unchunked(q, k, v, table_h, table_w)
    dim, size = (
        (0, rows_per_chunk // (heads * rows)) if maps > 1 else (1, rows_per_chunk // rows) if heads > 1 else (2, rows_per_chunk)
    )
    size = max(1, size)
    chunks = zip(
        q.split(size, dim),
        k.split(size, dim) if dim < 2 else repeat(k),
        v.split(size, dim) if dim < 2 else repeat(v),
        table_h.split(size) if dim == 2 else repeat(table_h),
        strict=False,  # repeat() has no end
    )
    return torch.cat([relative_position_attention(*chunk, table_w) for chunk in chunks], dim)


def _attend_unchunked(
    q: Float[Tensor, "W n q c d"],
    k: Float[Tensor, "W n L d"],
    v: Float[Tensor, "W n L d"],
    table_h: Float[Tensor, "q r d"],
    table_w: Float[Tensor, "c c d"],
) -> Float[Tensor, "W n Q d"]:
    # The position tables are multiplied by the unscaled query, while q . k is scaled, as in the released code.
    bias_h = torch.einsum("wnqcd,qrd->wnqcr", q, table_h)
    bias_w = torch.einsum("wnqcd,ckd->wnqck", q, table_w)
    bias = (bias_h[..., :, None] + bias_w[..., None, :]).flatten(4).flatten(2, 3)
    return F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=bias)


def relative_position_table(table: Float[Tensor, "R d"], size: int) -> Float[Tensor, "size size d"]:
    """Return the table's entry for every (query, key) pair along one axis, linearly interpolated if the size differs."""
    distances = 2 * size - 1
    if len(table) != distances:
        table = F.interpolate(table.T[None], distances, mode="linear")[0].T
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


def window_partition(
    x: Float[Tensor, "B h w C"], size: int, padding: Float[Tensor, " C"] | None = None
) -> tuple[Float[Tensor, "W size size C"], tuple[int, int]]:
    """Partition a map into windows, padded on the right and bottom with `padding` (default zeros).

    Return the windows and the padded height and width.
    """
    b, h, w, c = x.shape
    padded_h, padded_w = -(-h // size) * size, -(-w // size) * size
    if (padded_h, padded_w) != (h, w):
        fill = x.new_zeros(c) if padding is None else padding.to(x.dtype)
        padded = fill.expand(b, padded_h, padded_w, c).clone()
        padded[:, :h, :w] = x
        x = padded
    x = x.view(b, padded_h // size, size, padded_w // size, size, c)
    return x.transpose(2, 3).reshape(-1, size, size, c), (padded_h, padded_w)


def window_unpartition(
    windows: Float[Tensor, "W size size C"], size: int, padded_hw: tuple[int, int], hw: Sequence[int]
) -> Float[Tensor, "B h w C"]:
    """Join windows into the map, the inverse of `window_partition`, and crop the padding."""
    rows, columns = padded_hw[0] // size, padded_hw[1] // size
    x = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, *padded_hw, windows.shape[-1])[:, : hw[0], : hw[1]]
