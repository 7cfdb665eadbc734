"""The two-way transformer of the mask decoder (paper, section A; segment_anything/modeling/transformer.py).

Tokens attend to themselves and to the image, then the image attends to the tokens. What depends on the image alone is
computed once (`prepare`), the rest for each prompt (`forward`); `image_stream` says how the two meet.
N prompts of one image, T tokens a prompt, L image tokens, C channels, I = C / 2 inner channels of a cross attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.layers import MLPBlock
from sam_train.model.low_rank_image_tokens import LowRankImageTokens, SharedImageTokens, StreamNorm, StreamProjection


@dataclass(frozen=True, slots=True)
class BlockImageProjections:
    """The image's side of a block: under the maps that its two cross attentions take of it, and before its norm."""

    keys: StreamProjection
    values: StreamProjection
    queries: StreamProjection
    norm: StreamNorm


@dataclass(frozen=True, slots=True)
class ImageProjections:
    """The image's side of the whole transformer."""

    blocks: list[BlockImageProjections]
    keys: StreamProjection
    values: StreamProjection


class TwoWayTransformer(nn.Module):
    """Token and image streams through `depth` layers and a last attention of the tokens to the image."""

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
        """The layers, typed."""
        return cast("list[TwoWayBlock]", list(self.layers))

    def rank(self, num_tokens: int) -> int:
        """By how much a prompt of so many tokens changes the image stream."""
        return sum(block.self_attn.num_heads * (num_tokens - 1) + 1 for block in self.blocks)

    def positions(self, image_pe: Float[Tensor, "C L"]) -> list[Float[Tensor, "I L"]]:
        """The positional encoding under every map that meets it, bias included, the same for all images: see `prepare`."""
        maps = [m for b in self.blocks for m in (b.cross_attn_token_to_image.k_proj, b.cross_attn_image_to_token.q_proj)]
        return [torch.addmm(m.bias[:, None], m.weight, image_pe) for m in (*maps, self.final_attn_token_to_image.k_proj)]

    def prepare(self, shared: SharedImageTokens, positions: list[Float[Tensor, "I L"]]) -> ImageProjections:
        """The image's side of every attention and norm; `shared` goes through and is left as what comes out."""
        blocks = [block.prepare(shared, *positions[2 * i : 2 * i + 2]) for i, block in enumerate(self.blocks)]
        final = self.final_attn_token_to_image
        return ImageProjections(blocks, final.project_keys(shared, positions[-1]), final.project_values(shared))

    def forward(
        self, tokens: Float[Tensor, "N T C"], stream: LowRankImageTokens, side: ImageProjections
    ) -> Float[Tensor, "N T C"]:
        """The tokens after the last attention; `stream` goes through and is left as what comes out."""
        queries = tokens
        for block, block_side in zip(self.blocks, side.blocks, strict=True):
            queries = block(queries, tokens, stream, block_side)
        attended = self.final_attn_token_to_image(queries + tokens, stream, side.keys, side.values)
        return self.norm_final_attn(queries + self.dropout(attended))


class TwoWayBlock(nn.Module):
    """Self-attention, token to image, MLP on the tokens, image to token; a norm after each (post-norm).

    Dropout falls on what is added to the tokens, and for the image on the values that the tokens give it: what is
    added to the image is never written out.
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

    def prepare(
        self, shared: SharedImageTokens, key_pe: Float[Tensor, "I L"], query_pe: Float[Tensor, "I L"]
    ) -> BlockImageProjections:
        """The image's side; `shared` goes through."""
        keys = self.cross_attn_token_to_image.project_keys(shared, key_pe)
        values = self.cross_attn_token_to_image.project_values(shared)
        queries = self.cross_attn_image_to_token.project_queries(shared, query_pe)
        self.cross_attn_image_to_token.extend(shared)
        return BlockImageProjections(keys, values, queries, shared.normalize(self.norm4))

    def forward(
        self,
        queries: Float[Tensor, "N T C"],
        query_pe: Float[Tensor, "N T C"],
        stream: LowRankImageTokens,
        side: BlockImageProjections,
    ) -> Float[Tensor, "N T C"]:
        if self.skip_first_layer_pe:  # no residual here either: as released
            queries = self.dropout(self.self_attn(queries, queries))
        else:
            queries = queries + self.dropout(self.self_attn(queries + query_pe, queries))
        queries = self.norm1(queries)
        attended = self.cross_attn_token_to_image(queries + query_pe, stream, side.keys, side.values)
        queries = self.norm2(queries + self.dropout(attended))
        queries = self.norm3(queries + self.dropout(self.mlp(queries)))
        self.cross_attn_image_to_token(stream, side.queries, queries + query_pe, self.dropout(queries))
        stream.normalize(side.norm)
        return queries


class DecoderAttention(nn.Module):
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


class TokenSelfAttention(DecoderAttention):
    """Among the tokens of a prompt."""

    def forward(self, q_and_k: Float[Tensor, "N T C"], v: Float[Tensor, "N T C"]) -> Float[Tensor, "N T C"]:
        q, k, v = self._heads(self.q_proj(q_and_k)), self._heads(self.k_proj(q_and_k)), self._heads(self.v_proj(v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TokenToImageAttention(DecoderAttention):
    """Tokens read the image: keys are image + positions, values the image."""

    def project_keys(self, shared: SharedImageTokens, positions: Float[Tensor, "I L"]) -> StreamProjection:
        """The image's keys."""
        return shared.project(self.k_proj.weight, self.num_heads, positions)

    def project_values(self, shared: SharedImageTokens) -> StreamProjection:
        """The image's values, without v_proj's bias: the weights of a query sum to 1, so it is added to what is mixed."""
        return shared.project(self.v_proj.weight, self.num_heads)

    def forward(
        self, tokens: Float[Tensor, "N T C"], stream: LowRankImageTokens, keys: StreamProjection, values: StreamProjection
    ) -> Float[Tensor, "N T C"]:
        q = self._heads(self.q_proj(tokens)) * self.scale
        mixed = stream.mix(values, stream.scores(keys, q).softmax(-1))
        return self.out_proj(mixed.transpose(1, 2).flatten(2) + self.v_proj.bias)


class ImageToTokenAttention(DecoderAttention):
    """The image reads the tokens: queries are image + positions."""

    def project_queries(self, shared: SharedImageTokens, positions: Float[Tensor, "I L"]) -> StreamProjection:
        """The image's queries."""
        return shared.project(self.q_proj.weight, self.num_heads, positions)

    def extend(self, shared: SharedImageTokens) -> None:
        """What `forward` adds to the image are weights times values under `out_proj`."""
        shared.add(self.out_proj.weight.T, self.out_proj.bias)

    def forward(
        self, stream: LowRankImageTokens, queries: StreamProjection, keys: Float[Tensor, "N T C"], values: Float[Tensor, "N T C"]
    ) -> None:
        k = self._heads(self.k_proj(keys)) * self.scale
        stream.add(stream.scores(queries, k).softmax(2), self._heads(self.v_proj(values)))
