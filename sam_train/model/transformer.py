"""The two-way transformer of the mask decoder (paper, section A; segment_anything/modeling/transformer.py).

Tokens attend to themselves and to the image, then the image attends to the tokens. T tokens, L image tokens.

A prompt has 7 to 20 tokens against 1,024 to 4,096 image tokens, so projecting the image is what costs. The
cross attentions here never do: `q . (W x) = (q W) . x`, so each projection is folded into the few tokens. This is
exact up to rounding, has the released parameters, and leaves two passes over the image a cross attention.
"""

from __future__ import annotations

import torch
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
        self.final_attn_token_to_image = TokenToImage(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "N T C"], image: Float[Tensor, "N L C"], image_pe: Float[Tensor, "L C"]
    ) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N L C"]]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys, image_pe)
        return self.norm_final_attn(queries + self.dropout(attended)), keys


class TwoWayBlock(nn.Module):
    """Self-attention, token to image, MLP on the tokens, image to token; a norm after each (post-norm)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, dropout: float, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenToImage(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = ImageToToken(dim, num_heads, downsample=2)
        self.dropout = nn.Dropout(dropout)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(
        self,
        queries: Float[Tensor, "N T C"],
        keys: Float[Tensor, "N L C"],
        query_pe: Float[Tensor, "N T C"],
        key_pe: Float[Tensor, "L C"],
    ) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N L C"]]:
        if self.skip_first_layer_pe:  # no residual here either: as released
            queries = self.dropout(self.self_attn(queries, queries))
        else:
            queries = queries + self.dropout(self.self_attn(queries + query_pe, queries))
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.dropout(self.cross_attn_token_to_image(queries + query_pe, keys, key_pe)))
        queries = self.norm3(queries + self.dropout(self.mlp(queries)))
        keys = keys + self.dropout(self.cross_attn_image_to_token(keys, key_pe, queries + query_pe, queries))
        return queries, self.norm4(keys)


class TokenAttention(nn.Module):
    """The parameters of an attention whose inner width is `dim / downsample`, as released."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads, self.scale = num_heads, (inner // num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        # Queries and keys start as the same map, so a token first attends to what lies where it lies. With independent
        # maps the attention starts out uniform, all image tokens read the same, and a model that starts from nothing
        # needs twice as many steps until its answer depends on the click. Released weights overwrite this.
        nn.init.xavier_uniform_(self.q_proj.weight, gain=1.5)
        self.k_proj.weight.data.copy_(self.q_proj.weight)
        nn.init.zeros_(self.q_proj.bias)
        nn.init.zeros_(self.k_proj.bias)
        nn.init.xavier_uniform_(self.v_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def _heads(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N n S d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _rows(self, weight: Float[Tensor, "I C"]) -> Float[Tensor, "n d C"]:
        return weight.unflatten(0, (self.num_heads, -1))


class SelfAttention(TokenAttention):
    """Among the tokens of a prompt."""

    def forward(self, q_and_k: Float[Tensor, "N T C"], v: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        q, k, v = self._heads(self.q_proj(q_and_k)), self._heads(self.k_proj(q_and_k)), self._heads(self.v_proj(v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TokenToImage(TokenAttention):
    """Tokens read the image: keys are image + positions, values the image."""

    def forward(
        self, tokens: Float[Tensor, "N T C"], image: Float[Tensor, "N L C"], image_pe: Float[Tensor, "L C"]
    ) -> Float[Tensor, "N T C"]:
        q = self._heads(self.q_proj(tokens)) * self.scale
        # k_proj's bias adds the same to all scores of a query: softmax does not see it.
        folded = (q @ self._rows(self.k_proj.weight)).flatten(1, 2)
        weights = (folded @ image.transpose(1, 2) + folded @ image_pe.T).softmax(-1)
        mixed = (weights @ image).unflatten(1, (self.num_heads, -1))
        # The weights of a query sum to 1, so v_proj's bias passes through whole.
        values = mixed @ self._rows(self.v_proj.weight).transpose(1, 2)
        return self.out_proj(values.transpose(1, 2).flatten(2) + self.v_proj.bias)


class ImageToToken(TokenAttention):
    """The image reads the tokens: queries are image + positions."""

    def forward(
        self,
        image: Float[Tensor, "N L C"],
        image_pe: Float[Tensor, "L C"],
        keys: Float[Tensor, "N T C"],
        values: Float[Tensor, "N T C"],
    ) -> Float[Tensor, "N L C"]:
        k = self._heads(self.k_proj(keys)) * self.scale
        folded = (k @ self._rows(self.q_proj.weight)).flatten(1, 2)
        bias = (k @ self.q_proj.bias.unflatten(0, (self.num_heads, -1, 1))).flatten(1, 2)
        scores = folded @ image.transpose(1, 2) + (folded @ image_pe.T + bias)
        weights = scores.unflatten(1, (self.num_heads, -1)).softmax(2).flatten(1, 2)
        v = self._heads(self.v_proj(values))
        outputs = v @ self.out_proj.weight.T.unflatten(0, (self.num_heads, -1))
        return torch.baddbmm(self.out_proj.bias, weights.transpose(1, 2), outputs.flatten(1, 2))
