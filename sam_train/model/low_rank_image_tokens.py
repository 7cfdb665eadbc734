"""Image tokens of the mask decoder as a part shared by all prompts of an image plus a low-rank update for each prompt.

The two-way transformer updates the C channels of each of L image tokens separately for every prompt. But all prompts of an
image start from the same tokens x, and attention adds, for one prompt, attention weights times the values of a few prompt
tokens: a matrix of low rank. A layer norm scales and centres a row and weighs its channels. So the image tokens of a prompt are

    z = scale * (x' + factors^T . coefficients) + constant        (L 1) * ((L C) + (L R) . (R C)) + (C)

with x' and the constant shared by all prompts, and R about 50 per layer instead of C = 256. Any linear map of z (keys,
values, queries, the upscaling) is that map of x', computed once per image, and of R rows per prompt. Exact up to rounding.
The attention weights of an image token sum to 1 in each head, so the value of the last prompt token is added to all image
tokens, and the others add their difference from it: T - 1 factors per head, and one for the last values.

If R is close to C (few channels, many points), `DenseImageTokens` materializes z after the first norm and applies the maps to
the few prompt tokens instead: `q . (W z) = (q W) . z`.

Dimensions: L image tokens · C channels · N prompts of one image · n heads · T tokens of a prompt · d channels of a head ·
R current rank · O outputs of a linear map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class ImageTokenProjection:
    """A linear map with O = n d outputs of the image tokens, with the shared part already projected."""

    weight: Float[Tensor, "n d C"]
    """The linear map."""
    positions: Float[Tensor, "n d L"] | None
    """Unscaled summand: projected positions and constant. None if there are no positions or `base` contains them."""
    base: Float[Tensor, "n d L"] | None = None
    """The projected shared tokens; None if the tokens are dense."""
    maps: tuple[Float[Tensor, "_ O"], ...] = ()
    """The projected `maps` of `SharedImageTokens`."""
    constant: Float[Tensor, "n d 1"] | None = None
    """The projected constant, if there are no positions."""


@dataclass(frozen=True, slots=True)
class ImageTokenNorm:
    """A layer norm together with the shared part of its input."""

    norm: nn.LayerNorm
    base: Float[Tensor, "C #L"]
    """Shared tokens before the norm."""
    maps: tuple[Float[Tensor, "_ C"], ...]
    """`maps` of `SharedImageTokens` before the norm."""


@dataclass(frozen=True, slots=True)
class CenteredImageTokenNorm(ImageTokenNorm):
    """An `ImageTokenNorm` whose `base` and `maps` are centred over the channels."""

    cross_products: tuple[Float[Tensor, "_ L"], ...]
    """Products of the rows of `maps` with the tokens of `base`."""
    squared_norms: Float[Tensor, " L"]
    """Squared norms of the tokens of `base`."""


class SharedImageTokens:
    """The part of the image tokens that all prompts of an image share, updated layer by layer.

    base: image tokens including the embeddings that are added for every prompt.
    maps: matrices that map the values of each update of the prompts to channels.
    dense: whether the prompts' tokens are dense after the first norm, from where on nothing is shared.
    """

    def __init__(self, base: Float[Tensor, "C L"], maps: tuple[Float[Tensor, "_ C"], ...], *, dense: bool) -> None:
        self.base, self.maps, self.dense = base, maps, dense
        self.constant: Float[Tensor, " C"] | None = None  # part of the base before the first norm

    def project(
        self, weight: Float[Tensor, "O C"], num_heads: int, positions: Float[Tensor, "O L"] | None = None
    ) -> ImageTokenProjection:
        """Project the shared part by a linear map without bias; `positions`, projected by the same map, are added."""
        heads = partial(_split_heads, num_heads)
        if self.constant is not None and self.dense:
            return ImageTokenProjection(heads(weight), None if positions is None else heads(positions))
        base, maps = weight @ self.base, tuple(m @ weight.T for m in self.maps)
        if self.constant is None:
            return ImageTokenProjection(heads(weight), None, heads(base if positions is None else base + positions), maps)
        constant = (weight @ self.constant)[:, None]
        if positions is None:
            return ImageTokenProjection(heads(weight), None, heads(base), maps, heads(constant))
        return ImageTokenProjection(heads(weight), heads(positions + constant), heads(base), maps)

    def add_attention_output(self, value_map: Float[Tensor, "_ C"], constant: Float[Tensor, " C"]) -> None:
        """Record the update of `LowRankImageTokens.add_attention_output`: `value_map` maps its values to channels.

        The constant is the bias of that map, shared by all prompts.
        """
        if self.constant is None or self.dense:
            self.base = self.base + constant[:, None]
            self.maps = (*self.maps, value_map)
        else:  # the previous constant is not scaled, so it becomes a separate row
            self.maps = (*self.maps, (self.constant + constant)[None], value_map)

    def apply_norm(self, norm: nn.LayerNorm) -> ImageTokenNorm:
        """Apply a layer norm: its weight multiplies base and maps, its bias becomes the constant."""
        if self.dense:
            before = ImageTokenNorm(norm, self.base, self.maps)
            self.base, self.maps, self.constant = torch.zeros_like(norm.bias)[:, None], (), norm.bias
            return before
        base = self.base - self.base.mean(0)
        maps = tuple(m - m.mean(-1, keepdim=True) for m in self.maps)
        self.base, self.constant = base * norm.weight[:, None], norm.bias
        self.maps = tuple(m * norm.weight for m in maps)
        return CenteredImageTokenNorm(norm, base, maps, tuple(m @ base for m in maps), base.square().sum(0))


class LowRankImageTokens:
    """The low-rank update of each of N prompts: scale of each token, factors, and coefficients in terms of the shared maps.

    Factors are stored in consecutive blocks. A block is the index of a map and values `N n T d`; its n T coefficient rows are the
    products of the values with the n x d rows of the map.

    features: those of mask prompts, which the first shared map maps to channels; None without mask prompts.
    """

    def __init__(self, features: Float[Tensor, "N K L"] | None) -> None:
        self.scale: Float[Tensor, "N 1 L"] | None = None
        self.factors: Float[Tensor, "N R L"] | None = features
        self.blocks: list[tuple[int, Float[Tensor, "_ _ _ _"]]] = []
        if features is not None:
            self.blocks.append((0, torch.eye(features.shape[1], dtype=features.dtype, device=features.device)[None, None]))

    def select(self, rows: Int[Tensor, " K"]) -> LowRankImageTokens:
        """Return the image tokens of the prompts `rows`, after a norm."""
        assert self.factors is not None
        assert self.scale is not None
        selected = LowRankImageTokens(None)
        selected.scale, selected.factors = self.scale[rows], self.factors[rows]
        selected.blocks = [(i, v[rows] if len(v) == len(self.factors) else v) for i, v in self.blocks]
        return selected

    def scores(self, projection: ImageTokenProjection, tokens: Float[Tensor, "N n T d"]) -> Float[Tensor, "N n T L"]:
        """Return the products of prompt tokens, split into heads, with the projected image tokens."""
        assert projection.base is not None
        scores = _shared_matmul(tokens, projection.base)
        if self.factors is not None:
            rows = self._coefficients(projection.maps).unflatten(2, projection.base.shape[:2])
            low_rank = (tokens @ rows.permute(0, 2, 3, 1)).flatten(1, 2) @ self.factors
            scores = low_rank.unflatten(1, tokens.shape[1:3]).add_(scores)
        if self.scale is not None:
            scores = _multiply(scores, self.scale[:, None])
        return scores if projection.positions is None else scores.add_(_shared_matmul(tokens, projection.positions))

    def weighted_means(self, projection: ImageTokenProjection, weights: Float[Tensor, "N n T L"]) -> Float[Tensor, "N n T d"]:
        """Return the means of the projected image tokens with attention `weights`, which sum to 1 and are overwritten."""
        assert projection.base is not None
        if self.scale is not None:
            weights = _multiply(weights, self.scale[:, None])
        means = _shared_matmul(weights, projection.base.transpose(1, 2))
        if self.factors is not None:
            rows = self._coefficients(projection.maps).unflatten(2, projection.base.shape[:2])
            low_rank = (weights.flatten(1, 2) @ self.factors.transpose(1, 2)).unflatten(1, weights.shape[1:3])
            means = means + low_rank @ rows.transpose(1, 2)
        return means if projection.constant is None else means + projection.constant.transpose(1, 2)

    def add_attention_output(self, weights: Float[Tensor, "N n T L"], values: Float[Tensor, "N n T d"]) -> None:
        """Add to each image token the values of the prompt tokens with attention `weights`, which sum to 1 over T."""
        last, map_index = values[:, :, -1:], self.blocks[-1][0] + 1 if self.blocks else 0
        factors = weights[:, :, :-1].flatten(1, 2)
        if self.scale is None:
            last_factors = torch.ones_like(factors[:, :1])
        else:  # divide by the scale, which multiplies all factors later; the shared constant is divided as well
            last_factors = self.scale.reciprocal()
            factors = factors * last_factors
            self.blocks.append((map_index, values.new_ones(1, 1, 1, 1)))
            last_factors, map_index = last_factors.expand(-1, 2, -1), map_index + 1
        self.factors = torch.cat([last_factors, factors] if self.factors is None else [self.factors, last_factors, factors], 1)
        self.blocks += [(map_index, last.transpose(1, 2).flatten(2)[:, None]), (map_index, values[:, :, :-1] - last)]

    def apply_norm(self, shared: ImageTokenNorm) -> None:
        """Apply a layer norm over the channels, from the squared norms |scale (x' + f^T A)|^2 of the centred tokens."""
        assert isinstance(shared, CenteredImageTokenNorm)
        assert self.factors is not None
        with torch.autocast(self.factors.device.type, enabled=False):
            rows, factors = _at_least_fp32(self._coefficients(shared.maps)), _at_least_fp32(self.factors)
            products = rows @ rows.transpose(1, 2) @ factors
            start = 0
            for i, values in self.blocks:
                cross = _split_like(_at_least_fp32(shared.cross_products[i]), values)
                block = _shared_matmul(_at_least_fp32(values).expand(len(rows), -1, -1, -1), cross)
                end = start + block.shape[1] * block.shape[2]
                products[:, start:end].unflatten(1, block.shape[1:3]).add_(block, alpha=2)
                start = end
            squares = _multiply(products, factors).sum(1, keepdim=True) + shared.squared_norms
            if self.scale is None:
                self.scale = (squares / rows.shape[2] + shared.norm.eps).rsqrt()
            else:
                self.scale = self.scale * (squares * self.scale.square() / rows.shape[2] + shared.norm.eps).rsqrt()

    def project_chunks(
        self, projection: ImageTokenProjection, bias: Float[Tensor, " O"], chunk_tokens: int
    ) -> Iterator[Float[Tensor, "N l O"]]:
        """Yield the projected image tokens plus `bias` for consecutive chunks of l = `chunk_tokens` image tokens (n = 1)."""
        assert self.factors is not None
        assert self.scale is not None
        assert projection.base is not None
        assert projection.constant is not None
        rows, shared = self._coefficients(projection.maps), projection.base[0].T.contiguous()
        bias = bias + projection.constant[0, :, 0]
        parts = (x.split(chunk_tokens, -1) for x in (self.factors, self.scale))
        for base, factors, scale in zip(shared.split(chunk_tokens), *parts, strict=True):
            yield torch.addcmul(bias, scale.mT, torch.baddbmm(base, factors.mT, rows))

    def _coefficients(self, maps: tuple[Float[Tensor, "_ O"], ...]) -> Float[Tensor, "N R O"]:
        assert self.factors is not None
        blocks = [(values.to(maps[i].dtype) @ _split_like(maps[i], values)).flatten(1, 2) for i, values in self.blocks]
        return torch.cat([b.expand(len(self.factors), -1, -1) for b in blocks], 1)


class DenseImageTokens(LowRankImageTokens):
    """The image tokens of each prompt, dense from the first norm on."""

    def __init__(self, features: Float[Tensor, "N K L"] | None) -> None:
        super().__init__(features)
        self.tokens: Float[Tensor, "N L C"] | None = None

    def select(self, rows: Int[Tensor, " K"]) -> LowRankImageTokens:
        assert self.tokens is not None
        selected = DenseImageTokens(None)
        selected.tokens = self.tokens[rows]
        return selected

    def scores(self, projection: ImageTokenProjection, tokens: Float[Tensor, "N n T d"]) -> Float[Tensor, "N n T L"]:
        if self.tokens is None:
            return super().scores(projection, tokens)
        scores = ((tokens @ projection.weight).flatten(1, 2) @ self.tokens.mT).unflatten(1, tokens.shape[1:3])
        return scores if projection.positions is None else scores.add_(_shared_matmul(tokens, projection.positions))

    def weighted_means(self, projection: ImageTokenProjection, weights: Float[Tensor, "N n T L"]) -> Float[Tensor, "N n T d"]:
        if self.tokens is None:
            return super().weighted_means(projection, weights)
        return (weights.flatten(1, 2) @ self.tokens).unflatten(1, weights.shape[1:3]) @ projection.weight.mT

    def apply_norm(self, shared: ImageTokenNorm) -> None:
        assert self.factors is not None
        base = shared.base.T if self.tokens is None else self.tokens + shared.base.T
        tokens = torch.baddbmm(base, self.factors.mT, self._coefficients(shared.maps))
        norm = shared.norm
        self.tokens = F.layer_norm(tokens, (tokens.shape[2],), norm.weight, norm.bias, norm.eps)
        self.factors, self.blocks = None, []

    def project_chunks(
        self, projection: ImageTokenProjection, bias: Float[Tensor, " O"], chunk_tokens: int
    ) -> Iterator[Float[Tensor, "N l O"]]:
        assert self.tokens is not None
        for tokens in self.tokens.split(chunk_tokens, 1):
            yield F.linear(tokens, projection.weight[0], bias)


def _split_heads(num_heads: int, rows: Tensor) -> Tensor:
    return rows.unflatten(0, (num_heads, -1))


def _multiply(x: Tensor, factor: Tensor) -> Tensor:
    """Return x * factor, in place if gradients are disabled."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _at_least_fp32(x: Tensor) -> Tensor:
    """Convert half precision to fp32, which sums of squares need."""
    return x if x.dtype == torch.float64 else x.float()


def _split_like(rows: Float[Tensor, "_ S"], values: Float[Tensor, "_ n T d"]) -> Float[Tensor, "n d S"]:
    """Split the rows of a map into the heads and head channels of `values`."""
    return rows.unflatten(0, (values.shape[1], values.shape[3]))


def _shared_matmul(tokens: Float[Tensor, "N n T d"], base: Float[Tensor, "n d S"]) -> Float[Tensor, "N n T S"]:
    """Return `tokens @ base` with the heads as batch dimension, so that the shared matrix is read once for all prompts."""
    n, t = len(tokens), tokens.shape[2]
    return torch.bmm(tokens.transpose(0, 1).flatten(1, 2), base).unflatten(1, (n, t)).transpose(0, 1)
