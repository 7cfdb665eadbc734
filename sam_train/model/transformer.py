"""The two-way transformer of the mask decoder (paper, section A; segment_anything/modeling/transformer.py).

Prompt tokens attend to themselves and to the image, then the image attends to the prompt tokens. Everything that depends only
on the image is computed once (`prepare_image`), the rest for each prompt (`forward`); `low_rank_image_tokens` combines the two.

Dimensions: N prompts of one image · T tokens of a prompt · L image tokens · C channels · I = C / 2 inner channels of a cross
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.layers import MLPBlock
from sam_train.model.low_rank_image_tokens import ImageTokenNorm, ImageTokenProjection, LowRankImageTokens, SharedImageTokens


@dataclass(frozen=True, slots=True)
class BlockImageProjections:
    """The shared image tokens projected for the two cross attentions of a block, and the input of its norm."""

    keys: ImageTokenProjection
    values: ImageTokenProjection
    queries: ImageTokenProjection
    norm: ImageTokenNorm


@dataclass(frozen=True, slots=True)
class ImageProjections:
    """The shared image tokens projected for all blocks and for the final attention (keys, values)."""

    blocks: list[BlockImageProjections]
    keys: ImageTokenProjection
    values: ImageTokenProjection


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks over prompt tokens and image tokens, and a final attention of the prompt tokens to the image."""

    def __init__(self, *, depth: int, dim: int, num_heads: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, dropout=dropout, skip_first_layer_pe=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = TokenToImageAttention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    @property
    def blocks(self) -> list[TwoWayBlock]:
        """The blocks, typed."""
        return cast("list[TwoWayBlock]", list(self.layers))

    def update_rank(self, num_tokens: int) -> int:
        """Return the rank of the update of the image tokens by a prompt of `num_tokens` tokens."""
        return sum(block.self_attn.num_heads * (num_tokens - 1) + 1 for block in self.blocks)

    def project_positions(self, image_pe: Float[Tensor, "C L"]) -> list[Float[Tensor, "I L"]]:
        """Project the positional encoding by every map that uses it, including the bias: the `positions` of `prepare_image`.

        The result is the same for all images.
        """
        maps = [m for b in self.blocks for m in (b.cross_attn_token_to_image.k_proj, b.cross_attn_image_to_token.q_proj)]
        return [torch.addmm(m.bias[:, None], m.weight, image_pe) for m in (*maps, self.final_attn_token_to_image.k_proj)]

    def prepare_image(self, shared: SharedImageTokens, positions: list[Float[Tensor, "I L"]]) -> ImageProjections:
        """Project the shared image tokens for every attention and norm; updates `shared` to the output of the transformer."""
        blocks = [block.prepare_image(shared, *positions[2 * i : 2 * i + 2]) for i, block in enumerate(self.blocks)]
        final = self.final_attn_token_to_image
        return ImageProjections(blocks, final.project_keys(shared, positions[-1]), final.project_values(shared))

    def forward(
        self, tokens: Float[Tensor, "N T C"], image_tokens: LowRankImageTokens, image: ImageProjections
    ) -> Float[Tensor, "N T C"]:
        """Return the prompt tokens after the final attention; updates `image_tokens` to the output of the transformer."""
        queries = tokens
        for block, block_image in zip(self.blocks, image.blocks, strict=True):
            queries = block(queries, tokens, image_tokens, block_image)
        attended = self.final_attn_token_to_image(queries + tokens, image_tokens, image.keys, image.values)
        return self.norm_final_attn(queries + self.dropout(attended))


class TwoWayBlock(nn.Module):
    """Self-attention, token to image attention, MLP on the tokens, image to token attention; a norm after each (post-norm).

    Dropout is applied to the updates of the prompt tokens and, for the image tokens, to the values of the attention, because
    the update of the image tokens is never materialized.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, dropout: float, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = TokenSelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenToImageAttention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = ImageToTokenAttention(dim, num_heads, downsample=2)
        self.dropout = nn.Dropout(dropout)
        self.skip_first_layer_pe = skip_first_layer_pe

    def prepare_image(
        self, shared: SharedImageTokens, key_pe: Float[Tensor, "I L"], query_pe: Float[Tensor, "I L"]
    ) -> BlockImageProjections:
        """Project the shared image tokens for this block; updates `shared` to the output of the block."""
        keys = self.cross_attn_token_to_image.project_keys(shared, key_pe)
        values = self.cross_attn_token_to_image.project_values(shared)
        queries = self.cross_attn_image_to_token.project_queries(shared, query_pe)
        self.cross_attn_image_to_token.update_shared(shared)
        return BlockImageProjections(keys, values, queries, shared.apply_norm(self.norm4))

    def forward(
        self,
        queries: Float[Tensor, "N T C"],
        query_pe: Float[Tensor, "N T C"],
        image_tokens: LowRankImageTokens,
        image: BlockImageProjections,
    ) -> Float[Tensor, "N T C"]:
        if self.skip_first_layer_pe:  # without residual, as in the released code
            queries = self.dropout(self.self_attn(queries, queries))
        else:
            queries = queries + self.dropout(self.self_attn(queries + query_pe, queries))
        queries = self.norm1(queries)
        attended = self.cross_attn_token_to_image(queries + query_pe, image_tokens, image.keys, image.values)
        queries = self.norm2(queries + self.dropout(attended))
        queries = self.norm3(queries + self.dropout(self.mlp(queries)))
        self.cross_attn_image_to_token(image_tokens, image.queries, queries + query_pe, self.dropout(queries))
        image_tokens.apply_norm(image.norm)
        return queries


class DecoderAttention(nn.Module):
    """Parameters of an attention of inner width `dim / downsample`, as in the released code."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads, self.scale = num_heads, (inner // num_heads) ** -0.5
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        # Queries and keys are initialized with the same map, so a token first attends to its own position. With independent
        # maps the attention starts uniform, all image tokens receive the same values, and a model trained from scratch
        # needs twice as many steps until its prediction depends on the click. Released weights overwrite this.
        nn.init.xavier_uniform_(self.q_proj.weight, gain=1.5)
        self.k_proj.weight.data.copy_(self.q_proj.weight)
        nn.init.zeros_(self.q_proj.bias)
        nn.init.zeros_(self.k_proj.bias)
        nn.init.xavier_uniform_(self.v_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def _heads(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N n S d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TokenSelfAttention(DecoderAttention):
    """Self-attention among the tokens of a prompt."""

    def forward(self, q_and_k: Float[Tensor, "N T C"], v: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        q, k, v = self._heads(self.q_proj(q_and_k)), self._heads(self.k_proj(q_and_k)), self._heads(self.v_proj(v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TokenToImageAttention(DecoderAttention):
    """Attention from prompt tokens to the image: keys are image tokens + positions, values are image tokens."""

    def project_keys(self, shared: SharedImageTokens, positions: Float[Tensor, "I L"]) -> ImageTokenProjection:
        """Project the shared image tokens to keys."""
        return shared.project(self.k_proj.weight, self.num_heads, positions)

    def project_values(self, shared: SharedImageTokens) -> ImageTokenProjection:
        """Project the shared image tokens to values, without v_proj's bias, which `forward` adds: attention weights sum to 1."""
        return shared.project(self.v_proj.weight, self.num_heads)

    def forward(
        self,
        tokens: Float[Tensor, "N T C"],
        image_tokens: LowRankImageTokens,
        keys: ImageTokenProjection,
        values: ImageTokenProjection,
    ) -> Float[Tensor, "N T C"]:
        q = self._heads(self.q_proj(tokens)) * self.scale
        means = image_tokens.weighted_means(values, image_tokens.scores(keys, q).softmax(-1))
        return self.out_proj(means.transpose(1, 2).flatten(2) + self.v_proj.bias)


class ImageToTokenAttention(DecoderAttention):
    """Attention from the image to prompt tokens: queries are image tokens + positions."""

    def project_queries(self, shared: SharedImageTokens, positions: Float[Tensor, "I L"]) -> ImageTokenProjection:
        """Project the shared image tokens to queries."""
        return shared.project(self.q_proj.weight, self.num_heads, positions)

    def update_shared(self, shared: SharedImageTokens) -> None:
        """Record the update of `forward` in the shared image tokens: attention weights times values, mapped by `out_proj`."""
        shared.add_attention_output(self.out_proj.weight.T, self.out_proj.bias)

    def forward(
        self,
        image_tokens: LowRankImageTokens,
        queries: ImageTokenProjection,
        keys: Float[Tensor, "N T C"],
        values: Float[Tensor, "N T C"],
    ) -> None:
        k = self._heads(self.k_proj(keys)) * self.scale
        image_tokens.add_attention_output(image_tokens.scores(queries, k).softmax(2), self._heads(self.v_proj(values)))
