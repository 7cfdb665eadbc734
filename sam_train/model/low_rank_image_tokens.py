"""The image stream of the mask decoder: what attention makes of the image tokens for each prompt.

The two-way transformer changes the C channels of each of L image tokens, anew for every prompt. Yet all prompts of an
image start from the same tokens x, and what attention adds for one prompt is weights times a few token values: a
matrix of low rank. A norm only scales a row, centres it and weighs its channels. So the stream of a prompt stays

    z = scale * (x' + factors^T . coefficients) + constant        (L 1) * ((L C) + (L R) . (R C)) + (C)

with x' and the constant shared by all prompts, and R about 50 a layer instead of C = 256. Any linear map of z (keys,
values, queries, the upscaling) is that map of x', made once an image, and of R rows a prompt. Exact up to rounding.
The weights of an image token sum to 1 in each head, so the last token's value goes to all image tokens alike, and the others
add their difference from it: T - 1 factors a head, and one for the whole.

Where R nears C (few channels, many points), `DenseImageTokens` writes z out after the first norm and folds the maps into the few
tokens instead: `q . (W z) = (q W) . z`.

L image tokens · C channels · N prompts of one image · n heads · T tokens of a prompt · d channels of a head ·
R rank so far · O outputs of a linear map.
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
class StreamProjection:
    """The stream under a linear map with O = n d outputs. Without `base`, the stream is dense and only the map is known."""

    weight: Float[Tensor, "n d C"]
    positions: Float[Tensor, "n d L"] | None
    """What is added unscaled: positions and the constant. None where there are no positions, or where `base` has them."""
    base: Float[Tensor, "n d L"] | None = None
    """The shared tokens."""
    maps: tuple[Float[Tensor, "_ O"], ...] = ()
    constant: Float[Tensor, "n d 1"] | None = None
    """Where there are no positions."""


@dataclass(frozen=True, slots=True)
class StreamNorm:
    """A layer norm, and what it meets of the shared part."""

    norm: nn.LayerNorm
    base: Float[Tensor, "C #L"]
    maps: tuple[Float[Tensor, "_ C"], ...]


@dataclass(frozen=True, slots=True)
class CenteredStreamNorm(StreamNorm):
    """The same with the channels of base and maps centred."""

    crosses: tuple[Float[Tensor, "_ L"], ...]
    """Products of the maps' rows with the base's tokens."""
    squares: Float[Tensor, " L"]
    """Squared lengths of the base's tokens."""


class SharedImageTokens:
    """The part of the stream that all prompts of an image have in common, as the layers go by.

    base: the image tokens with what is added to them for every prompt.
    maps: the rows that values are coordinates of.
    dense: whether the prompts' streams are written out after the first norm: nothing is shared from there on.
    """

    def __init__(self, base: Float[Tensor, "C L"], maps: tuple[Float[Tensor, "_ C"], ...], *, dense: bool) -> None:
        self.base, self.maps, self.dense = base, maps, dense
        self.constant: Float[Tensor, " C"] | None = None  # before the first norm it is part of the base

    def project(
        self, weight: Float[Tensor, "O C"], num_heads: int, positions: Float[Tensor, "O L"] | None = None
    ) -> StreamProjection:
        """The stream, or stream + positions (given under the same map), under a linear map without bias."""
        heads = partial(_of_heads, num_heads)
        if self.constant is not None and self.dense:
            return StreamProjection(heads(weight), None if positions is None else heads(positions))
        base, maps = weight @ self.base, tuple(m @ weight.T for m in self.maps)
        if self.constant is None:
            return StreamProjection(heads(weight), None, heads(base if positions is None else base + positions), maps)
        constant = (weight @ self.constant)[:, None]
        if positions is None:
            return StreamProjection(heads(weight), None, heads(base), maps, heads(constant))
        return StreamProjection(heads(weight), heads(positions + constant), heads(base), maps)

    def add(self, rows: Float[Tensor, "_ C"], constant: Float[Tensor, " C"]) -> None:
        """Follow `LowRankImageTokens.add`, whose values are coordinates of `rows`; and a constant."""
        if self.constant is None or self.dense:
            self.base = self.base + constant[:, None]
            self.maps = (*self.maps, rows)
        else:  # the constant so far is not scaled: it becomes a row of its own
            self.maps = (*self.maps, (self.constant + constant)[None], rows)

    def normalize(self, norm: nn.LayerNorm) -> StreamNorm:
        """Follow a layer norm: its weight falls on base and maps, its bias is the constant."""
        if self.dense:
            before = StreamNorm(norm, self.base, self.maps)
            self.base, self.maps, self.constant = torch.zeros_like(norm.bias)[:, None], (), norm.bias
            return before
        base = self.base - self.base.mean(0)
        maps = tuple(m - m.mean(-1, keepdim=True) for m in self.maps)
        self.base, self.constant = base * norm.weight[:, None], norm.bias
        self.maps = tuple(m * norm.weight for m in maps)
        return CenteredStreamNorm(norm, base, maps, tuple(m @ base for m in maps), base.square().sum(0))


class LowRankImageTokens:
    """What each of N prompts has of its own: the scale of each row, factors, and their values in terms of the shared maps.

    Blocks of factors follow each other. A block is the number of a map and the values `N n T d`: its n T coefficients are the
    products of the values with the map's n times d rows.
    """

    def __init__(self, features: Float[Tensor, "N K L"] | None) -> None:
        """`features` are those of mask prompts, coordinates of the first shared map."""
        self.scale: Float[Tensor, "N 1 L"] | None = None
        self.factors: Float[Tensor, "N R L"] | None = features
        self.blocks: list[tuple[int, Float[Tensor, "_ _ _ _"]]] = []
        if features is not None:
            self.blocks.append((0, torch.eye(features.shape[1], dtype=features.dtype, device=features.device)[None, None]))

    def at(self, rows: Int[Tensor, " K"]) -> LowRankImageTokens:
        """The streams of some prompts, after a norm."""
        assert self.factors is not None
        assert self.scale is not None
        some = LowRankImageTokens(None)
        some.scale, some.factors = self.scale[rows], self.factors[rows]
        some.blocks = [(i, v[rows] if len(v) == len(self.factors) else v) for i, v in self.blocks]
        return some

    def scores(self, projection: StreamProjection, tokens: Float[Tensor, "N n T d"]) -> Float[Tensor, "N n T L"]:
        """Products of the tokens' heads with the projected stream."""
        assert projection.base is not None
        scores = _by_head(tokens, projection.base)
        if self.factors is not None:
            rows = self._coefficients(projection.maps).unflatten(2, projection.base.shape[:2])
            own = (tokens @ rows.permute(0, 2, 3, 1)).flatten(1, 2) @ self.factors
            scores = own.unflatten(1, tokens.shape[1:3]).add_(scores)
        if self.scale is not None:
            scores = _times(scores, self.scale[:, None])
        return scores if projection.positions is None else scores.add_(_by_head(tokens, projection.positions))

    def mix(self, projection: StreamProjection, weights: Float[Tensor, "N n T L"]) -> Float[Tensor, "N n T d"]:
        """Means of the projected stream over the image, by the weights of each token, which sum to 1 and are used up."""
        assert projection.base is not None
        if self.scale is not None:
            weights = _times(weights, self.scale[:, None])
        mixed = _by_head(weights, projection.base.transpose(1, 2))
        if self.factors is not None:
            rows = self._coefficients(projection.maps).unflatten(2, projection.base.shape[:2])
            own = (weights.flatten(1, 2) @ self.factors.transpose(1, 2)).unflatten(1, weights.shape[1:3])
            mixed = mixed + own @ rows.transpose(1, 2)
        return mixed if projection.constant is None else mixed + projection.constant.transpose(1, 2)

    def add(self, weights: Float[Tensor, "N n T L"], values: Float[Tensor, "N n T d"]) -> None:
        """Each image token takes the values of the prompt's tokens by its weights, which sum to 1."""
        last, at = values[:, :, -1:], self.blocks[-1][0] + 1 if self.blocks else 0
        factors = weights[:, :, :-1].flatten(1, 2)
        if self.scale is None:
            whole = torch.ones_like(factors[:, :1])
        else:  # what is scaled later as all the rest is must be divided now: the shared constant, too
            whole = self.scale.reciprocal()
            factors = factors * whole
            self.blocks.append((at, values.new_ones(1, 1, 1, 1)))
            whole, at = whole.expand(-1, 2, -1), at + 1
        self.factors = torch.cat([whole, factors] if self.factors is None else [self.factors, whole, factors], 1)
        self.blocks += [(at, last.transpose(1, 2).flatten(2)[:, None]), (at, values[:, :, :-1] - last)]

    def normalize(self, to: StreamNorm) -> None:
        """A layer norm over the channels, by the squared lengths of the rows: |scale (x' + f^T A)|^2, all centred."""
        assert isinstance(to, CenteredStreamNorm)
        assert self.factors is not None
        with torch.autocast(self.factors.device.type, enabled=False):
            rows, factors = _precise(self._coefficients(to.maps)), _precise(self.factors)
            products = rows @ rows.transpose(1, 2) @ factors
            at = 0
            for i, values in self.blocks:
                cross = _heads(_precise(to.crosses[i]), values)
                block = _by_head(_precise(values).expand(len(rows), -1, -1, -1), cross)
                end = at + block.shape[1] * block.shape[2]
                products[:, at:end].unflatten(1, block.shape[1:3]).add_(block, alpha=2)
                at = end
            squares = _times(products, factors).sum(1, keepdim=True) + to.squares
            if self.scale is None:
                self.scale = (squares / rows.shape[2] + to.norm.eps).rsqrt()
            else:
                self.scale = self.scale * (squares * self.scale.square() / rows.shape[2] + to.norm.eps).rsqrt()

    def outputs(
        self, projection: StreamProjection, bias: Float[Tensor, " O"], tokens_at_once: int
    ) -> Iterator[Float[Tensor, "N l O"]]:
        """The projected stream and a bias, written out for l image tokens at a time (n = 1)."""
        assert self.factors is not None
        assert self.scale is not None
        assert projection.base is not None
        assert projection.constant is not None
        rows, shared = self._coefficients(projection.maps), projection.base[0].T.contiguous()
        bias = bias + projection.constant[0, :, 0]
        parts = (x.split(tokens_at_once, -1) for x in (self.factors, self.scale))
        for base, factors, scale in zip(shared.split(tokens_at_once), *parts, strict=True):
            yield torch.addcmul(bias, scale.mT, torch.baddbmm(base, factors.mT, rows))

    def _coefficients(self, maps: tuple[Float[Tensor, "_ O"], ...]) -> Float[Tensor, "N R O"]:
        assert self.factors is not None
        blocks = [(values.to(maps[i].dtype) @ _heads(maps[i], values)).flatten(1, 2) for i, values in self.blocks]
        return torch.cat([b.expand(len(self.factors), -1, -1) for b in blocks], 1)


class DenseImageTokens(LowRankImageTokens):
    """The stream written out from the first norm on."""

    def __init__(self, features: Float[Tensor, "N K L"] | None) -> None:
        super().__init__(features)
        self.tokens: Float[Tensor, "N L C"] | None = None

    def at(self, rows: Int[Tensor, " K"]) -> LowRankImageTokens:
        assert self.tokens is not None
        some = DenseImageTokens(None)
        some.tokens = self.tokens[rows]
        return some

    def scores(self, projection: StreamProjection, tokens: Float[Tensor, "N n T d"]) -> Float[Tensor, "N n T L"]:
        if self.tokens is None:
            return super().scores(projection, tokens)
        scores = ((tokens @ projection.weight).flatten(1, 2) @ self.tokens.mT).unflatten(1, tokens.shape[1:3])
        return scores if projection.positions is None else scores.add_(_by_head(tokens, projection.positions))

    def mix(self, projection: StreamProjection, weights: Float[Tensor, "N n T L"]) -> Float[Tensor, "N n T d"]:
        if self.tokens is None:
            return super().mix(projection, weights)
        return (weights.flatten(1, 2) @ self.tokens).unflatten(1, weights.shape[1:3]) @ projection.weight.mT

    def normalize(self, to: StreamNorm) -> None:
        assert self.factors is not None
        before = to.base.T if self.tokens is None else self.tokens + to.base.T
        tokens = torch.baddbmm(before, self.factors.mT, self._coefficients(to.maps))
        self.tokens = F.layer_norm(tokens, (tokens.shape[2],), to.norm.weight, to.norm.bias, to.norm.eps)
        self.factors, self.blocks = None, []

    def outputs(
        self, projection: StreamProjection, bias: Float[Tensor, " O"], tokens_at_once: int
    ) -> Iterator[Float[Tensor, "N l O"]]:
        assert self.tokens is not None
        for tokens in self.tokens.split(tokens_at_once, 1):
            yield F.linear(tokens, projection.weight[0], bias)


def _of_heads(num_heads: int, rows: Tensor) -> Tensor:
    return rows.unflatten(0, (num_heads, -1))


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """Their product, in the place of x unless a gradient may want it."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _precise(x: Tensor) -> Tensor:
    """Squares want fp32 where autocast made something shorter."""
    return x if x.dtype == torch.float64 else x.float()


def _heads(rows: Float[Tensor, "_ S"], values: Float[Tensor, "_ n T d"]) -> Float[Tensor, "n d S"]:
    """Of a map or what it met, as the values see it."""
    return rows.unflatten(0, (values.shape[1], values.shape[3]))


def _by_head(tokens: Float[Tensor, "N n T d"], base: Float[Tensor, "n d S"]) -> Float[Tensor, "N n T S"]:
    """`tokens @ base` with the heads as the batch: the shared side is read once for all prompts."""
    n, t = len(tokens), tokens.shape[2]
    return torch.bmm(tokens.transpose(0, 1).flatten(1, 2), base).unflatten(1, (n, t)).transpose(0, 1)
