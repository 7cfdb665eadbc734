"""The prompt encoder (paper, section A; segment_anything/modeling/prompt_encoder.py).

Labelled points become sparse tokens, a text prompt one more token, the mask prompt a dense map. Positions are random Fourier
features, always computed in fp32: in bf16 their error equals moving a click by a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sam_train.model.layers import LayerNorm2d
from sam_train.structures import PointLabel, Prompts


@dataclass(frozen=True, slots=True)
class DensePromptEmbedding:
    """Dense embedding of N mask prompts, `features^T @ maps[0] + constant`, which is added to the image tokens.

    Without mask prompts there are no features, and the constant is the "no mask" embedding.
    """

    features: Float[Tensor, "N K L"] | None
    """K = 16 features of each of L image tokens."""
    maps: tuple[Float[Tensor, "K C"], ...]
    """The map from features to channels; empty without mask prompts."""
    constant: Float[Tensor, " C"]
    """The part that all prompts share."""

    def select_features(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n K L"] | None:
        """Return the features of the prompts `rows`."""
        return None if self.features is None else self.features[rows]


class PromptEncoder(nn.Module):
    """Encodes `Prompts` as N T C sparse embeddings (T = P points, plus one token for a text prompt) and dense embeddings.

    text_dim: E, the dimensions of text embeddings; None is a model without text prompts, as all released ones are. The paper
        does not state how its 768 dimensions become 256; here a linear map does it (Linear(768, 256) for the paper's CLIP).
    text_encoder: SHA-256 of the text encoder (`TextEncoder.sha256`) whose embeddings the model was trained with; embeddings of
        another encoder are not compatible.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        image_size: int,
        grid_size: int,
        mask_in_chans: int = 16,
        text_dim: int | None = None,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.grid_size = image_size, grid_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, 2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, 2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.text_encoder = text_encoder
        self.text_projection: nn.Linear | None = None
        if text_dim is not None:
            self.text_projection = nn.Linear(text_dim, embed_dim)
            # Maps an embedding of unit norm to a token as large as the others, whose values are initialized as N(0, 1).
            nn.init.normal_(self.text_projection.weight)
            nn.init.zeros_(self.text_projection.bias)

    @property
    def text_dim(self) -> int | None:
        """E, the dimensions of text embeddings, or None for a model without text prompts."""
        return None if self.text_projection is None else self.text_projection.in_features

    def forward(self, prompts: Prompts) -> tuple[Float[Tensor, "N T C"], DensePromptEmbedding]:
        """Return sparse and dense embeddings. Raises ValueError for text embeddings that the model does not accept."""
        sparse = self._embed_points(prompts)
        if prompts.text_embeddings is not None:
            sparse = torch.cat([sparse, self.embed_text(prompts.text_embeddings)[:, None].to(sparse.dtype)], 1)
        if prompts.mask_logits is None:
            return sparse, DensePromptEmbedding(None, (), self.no_mask_embed.weight[0])
        *downscaling, last = self.mask_downscaling
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        features = prompts.mask_logits.to(last.weight.dtype)
        for layer in downscaling:
            features = layer(features)
        return sparse, DensePromptEmbedding(features.flatten(2), (last.weight[:, :, 0, 0].mT,), last.bias)

    def embed_text(self, text_embeddings: Float[Tensor, "N E"]) -> Float[Tensor, "N C"]:
        """Project text embeddings to tokens. Raises ValueError if the model has no text prompts or E differs."""
        if self.text_projection is None:
            raise ValueError(
                "this model does not accept text prompts: use points or boxes, or train one that does (sam-train text=...)"
            )
        if text_embeddings.shape[1] != self.text_projection.in_features:
            expected = f"{self.text_projection.in_features}, those of the text encoder that the model was trained with"
            raise ValueError(f"text embeddings have {text_embeddings.shape[1]} dimensions, expected {expected}")
        return self.text_projection(text_embeddings)

    def dense_positions(self) -> Float[Tensor, "C h w"]:
        """Return the positional encoding of the image tokens."""
        return self.pe_layer.grid(self.grid_size).to(self.no_mask_embed.weight.dtype)

    def _embed_points(self, prompts: Prompts) -> Float[Tensor, "N P C"]:
        labels = prompts.point_labels
        positions = self.pe_layer((prompts.points_xy.float() + 0.5) / self.image_size)
        positions = positions * (labels != PointLabel.PADDING)[..., None]
        # Row 0 is the "not a point" embedding, row 1 + label that of a labelled point.
        labelled: list[Tensor] = [e.weight for e in self.point_embeddings]  # type: ignore[misc]
        table = torch.cat([self.not_a_point_embed.weight, *labelled])
        return positions.to(table.dtype) + table[labels.long() + 1]


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of coordinates in [0, 1]; the random matrix is a buffer and part of the checkpoint."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, points: Float[Tensor, "... 2"]) -> Float[Tensor, "... C"]:
        with torch.autocast(points.device.type, enabled=False):
            matrix = self.positional_encoding_gaussian_matrix.float()
            angles = 2 * math.pi * ((2 * points.float() - 1) @ matrix)
            return torch.cat([angles.sin(), angles.cos()], -1)

    def grid(self, size: int) -> Float[Tensor, "C h w"]:
        """Return the encoding of the cell centres of a size x size grid."""
        centres = (torch.arange(size, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], -1)).permute(2, 0, 1)
