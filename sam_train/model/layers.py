"""Layers that several parts of the model share, and activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import cast

import torch
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
    """Linear layers with ReLU in between, used by the hypernetworks and the IoU head."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(dims))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    def init_last_layer(self, *, gain: float, bias: float) -> None:
        """Scale the weights of the last layer by `gain` and set its bias, which determines the initial output."""
        last = cast(nn.Linear, self.layers[-1])
        last.weight.data.mul_(gain)
        nn.init.constant_(last.bias, bias)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MLPBlock(nn.Module):
    """The MLP of a transformer block."""

    def __init__(self, dim: int, mlp_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)
        self.act = activation()

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        return self.lin2(self.act(self.lin1(x)))


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of a sample with probability `rate` during training.

    A sample is kept if its value in `uniform_draws` is at least the rate. Each branch needs its own module: a branch that is
    recomputed in the backward pass must use the same draws.
    """

    uniform_draws: Tensor | None = None
    """One draw from [0, 1) per sample. Set it to make the outcome independent of device and batch; None draws from torch's
    generator."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        uniform_draws = torch.rand(len(x), device=x.device) if self.uniform_draws is None else self.uniform_draws
        keep = (uniform_draws >= self.rate).view(-1, *[1] * (x.ndim - 1))
        return x * keep / (1 - self.rate)


def apply_activation_checkpointing(blocks: Iterable[nn.Module], library: str) -> None:
    """Make blocks recompute their inner activations in the backward pass instead of storing them; in place, names unchanged.

    library: "torch" (`torch.utils.checkpoint`), "fairscale" (its `checkpoint_wrapper`) or "none".
    Raises ConfigError for any other value.
    """
    if library not in ("none", "torch", "fairscale"):
        raise ConfigError(f"activation_checkpointing must be none, torch or fairscale, got {library!r}")
    for block in blocks:
        if library == "torch":
            block.forward = partial(checkpoint, type(block).forward, block, use_reentrant=False)
        elif library == "fairscale":
            from fairscale.nn.checkpoint import checkpoint_wrapper

            checkpoint_wrapper(block)
