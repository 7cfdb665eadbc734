"""Layers that more than one part of the model is made of."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sam_train.errors import ConfigError


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of an N C H W map (segment_anything/modeling/common.py)."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Linear layers with ReLU between them (the hypernetworks and the IoU head)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(dims))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    def init_last_layer(self, *, gain: float, bias: float) -> None:
        """Scale the weights of the last layer by `gain` and set its bias: what the MLP answers at first."""
        last = cast(nn.Linear, self.layers[-1])
        last.weight.data.mul_(gain)
        nn.init.constant_(last.bias, bias)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MLPBlock(nn.Module):
    """The feed-forward half of a transformer block."""

    def __init__(self, dim: int, mlp_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)
        self.act = activation()

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        return self.lin2(self.act(self.lin1(x)))


class DropPath(nn.Module):
    """Stochastic depth: a whole residual branch of a sample is dropped with probability `rate` while training.

    A sample is kept where its number in `uniform_draws`, drawn from [0, 1), is at least the rate. Whoever wants a sample to meet
    the same fate on any device and in any batch sets these numbers; None draws them here, from torch's generator. One module
    for each branch: a branch that is computed again in the backward pass must find its own numbers.
    """

    uniform_draws: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        uniform_draws = torch.rand(len(x), device=x.device) if self.uniform_draws is None else self.uniform_draws
        keep = (uniform_draws >= self.rate).view(-1, *[1] * (x.ndim - 1))
        return x * keep / (1 - self.rate)


def apply_activation_checkpointing(blocks: Iterable[nn.Module], how: str) -> None:
    """Compute the blocks' inner activations again in the backward pass instead of keeping them; in place, names stay.

    how: "torch" (`torch.utils.checkpoint`), "fairscale" (its `checkpoint_wrapper`) or "none".
    Raises ConfigError for anything else.
    """
    if how not in ("none", "torch", "fairscale"):
        raise ConfigError(f"activation_checkpointing must be none, torch or fairscale, got {how!r}")
    for block in blocks:
        if how == "torch":
            block.forward = partial(checkpoint, type(block).forward, block, use_reentrant=False)
        elif how == "fairscale":
            checkpoint_wrapper(block)
