"""A running mean of the weights over the steps: what the run hands on, less noisy than its last weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sam_train.training.strategies import shard_like


class WeightEMA(Callback):
    """After each step, mean = decay x mean + (1 - decay) x weights, in float32, from the weights at the start on.

    decay: in (0, 1); 0.999 looks back about a thousand steps. Validation measures the mean, and model.pt holds it. It travels
    in the checkpoints, so a run that goes on has the mean of the unbroken run; on the device it takes the room of the weights.
    Raises ValueError for another decay.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, or null for none, got {decay}")
        self.decay = decay
        self._means: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] = {}
        self._aside: list[tuple[nn.Parameter, Tensor]] = []
        self.whole: dict[str, Tensor] = {}
        """After training: the means, gathered."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or with the means of the checkpoint."""
        for name, parameter in parameters(pl_module).items():
            mean = shard_like(self._loaded[name].to(parameter.device), parameter) if self._loaded else parameter.detach().clone()
            self._means[name] = mean.float()

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Move the means towards the weights. Called by the step: what follows a step, checkpoints among it, wants it done."""
        for name, parameter in parameters(pl_module).items():
            self._means[name].lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the means in the weights' place; before the first step there are none."""
        for name, parameter in parameters(pl_module).items() if self._means else ():
            self._aside.append((parameter, parameter.detach().clone()))
            parameter.copy_(self._means[name])

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are themselves again. Those of a sharded encoder are not in the module now, but gathered copies."""
        for parameter, weights in self._aside:
            parameter.copy_(weights)
        self._aside = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather; every process comes here."""
        self.whole = {n: (m.full_tensor() if isinstance(m, DTensor) else m).cpu() for n, m in self._means.items()}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; sharded means are shares here."""
        return {"means": self._means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._loaded = state_dict["means"]


def parameters(module: LightningModule) -> dict[str, nn.Parameter]:
    """Those of the model that are trained, by name."""
    return {name: p for name, p in module.model.named_parameters() if p.requires_grad}  # type: ignore[union-attr]
