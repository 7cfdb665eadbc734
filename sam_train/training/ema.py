"""Exponential moving average (EMA) of the weights over the steps, which is less noisy than the last weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sam_train.training.strategies import shard_like


class WeightEMA(Callback):
    """Updates mean = decay x mean + (1 - decay) x weights after each step, in float32, starting from the initial weights.

    Validation measures the EMA, and model.pt holds it. It is stored in checkpoints, so a resumed run has the EMA of the
    uninterrupted run. On the device it needs as much memory as the weights.

    decay: in (0, 1); 0.999 averages over about a thousand steps.
    Raises ValueError for a decay outside (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, or null for none, got {decay}")
        self.decay = decay
        self._means: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] = {}
        self._weights: list[tuple[nn.Parameter, Tensor]] = []
        self.full_means: dict[str, Tensor] = {}
        """The EMA after training, gathered on the CPU; empty before."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialise the EMA with the weights, or with the EMA of the checkpoint."""
        for name, parameter in trained_parameters(pl_module).items():
            mean = shard_like(self._loaded[name].to(parameter.device), parameter) if self._loaded else parameter.detach().clone()
            self._means[name] = mean.float()

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Update the EMA with the weights.

        The step calls it, not a hook of Lightning's: hooks that follow a step, such as checkpoints, need the updated EMA.
        """
        for name, parameter in trained_parameters(pl_module).items():
            self._means[name].lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the weights by the EMA; before the first step there is none."""
        for name, parameter in trained_parameters(pl_module).items() if self._means else ():
            self._weights.append((parameter, parameter.detach().clone()))
            parameter.copy_(self._means[name])

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights. The parameters of a sharded encoder are unsharded copies during validation."""
        for parameter, weights in self._weights:
            parameter.copy_(weights)
        self._weights = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the EMA. Every process must call it."""
        self.full_means = {n: (m.full_tensor() if isinstance(m, DTensor) else m).cpu() for n, m in self._means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the EMA for the checkpoint; the means of sharded parameters are shards."""
        return {"means": self._means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the EMA of the checkpoint until training starts."""
        self._loaded = state_dict["means"]


def trained_parameters(module: LightningModule) -> dict[str, nn.Parameter]:
    """Return the trained parameters of the module's model by name."""
    return {name: p for name, p in module.model.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
