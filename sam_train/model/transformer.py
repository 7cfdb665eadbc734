"""The two-way transformer of the mask decoder (paper, section A; segment_anything/modeling/transformer.py).

Tokens attend to themselves and to the image, then the image attends to the tokens. T tokens, L image tokens.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    """Token and image streams through `depth` layers and a last attention of the tokens to the image."""

    def __init__(self, *, depth: int, dim: int, num_heads: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, dropout=dropout, skip_first_layer_pe=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = TokenAttention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N T C"], image: Float[Tensor, "N L C"], image_pe: Float[Tensor, "1 L C"]
    ) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N L C"]]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + self.dropout(attended)), keys


class TwoWayBlock(nn.Module):
    """Self-attention, token to image, MLP on the tokens, image to token; a norm after each (post-norm)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, dropout: float, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = TokenAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, num_heads, downsample=2)
        self.dropout = nn.Dropout(dropout)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self,
        queries: Float[Tensor, "N T C"],
        keys: Float[Tensor, "N L C"],
        query_pe: Float[Tensor, "N T C"],
        key_pe: Float[Tensor, "1 L C"],
    ) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N L C"]]:
        if self.skip_first_layer_pe:  # no residual here either: as released
            queries = self.dropout(self.self_attn(queries, queries, queries))
        else:
            q = queries + query_pe
            queries = queries + self.dropout(self.self_attn(q, q, queries))
        queries = self.norm1(queries)
        keys_with_pe = keys + key_pe
        attended = self.cross_attn_token_to_image(queries + query_pe, keys_with_pe, keys)
        queries = self.norm2(queries + self.dropout(attended))
        queries = self.norm3(queries + self.dropout(self.mlp(queries)))
        attended = self.cross_attn_image_to_token(keys_with_pe, queries + query_pe, queries)
        return queries, self.norm4(keys + self.dropout(attended))


class TokenAttention(nn.Module):
    """Attention whose inner width is `dim / downsample`."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Float[Tensor, "N Q C"], k: Float[Tensor, "N K C"], v: Float[Tensor, "N K C"]) -> Float[Tensor, "N Q C"]:
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N n S d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
