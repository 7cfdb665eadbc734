"""The paper's optimizer (section A): AdamW, layer-wise learning rate decay in the encoder, linear warm-up, step schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam_train.model.tiny_vit import TinyViT
from sam_train.optim.muon import Muon


class OptimizerFactory:
    """Builds the optimizer and its learning rate schedule for a model.

    lr, weight_decay, betas: 8e-4, 0.1, (0.9, 0.999) for ViT-H (paper).
    layer_decay: the learning rate of an encoder layer is lr * layer_decay ** (number of layers above it); 0.8 for ViT-H (paper),
        1 for a model trained from scratch.
    warmup_steps: steps of linear warm-up, 250 (paper).
    schedule: "step" multiplies by 0.1 at each of `milestones`, given as shares of the run (paper: 60k and 86,666 of
        90k steps); "cosine" decays to zero along a half cosine, which suits short runs; "rsqrt" is 1 / sqrt(1 + steps since
        the warm-up / timescale), which does not depend on the length of the run (Zhai et al. 2021, section 3.5; SAM 2).
    timescale: steps of "rsqrt", 1000 in SAM 2.
    cooldown_steps: steps of linear decay to zero at the end, multiplied with the schedule; 5000 in SAM 2, 0 for none.
    decay_norms_and_biases: apply weight decay to vectors. The paper does not state it; ViTDet-H has no exemptions, SAM 2
        exempts them, and so does the default here.
    muon_lr: learning rate of the weight matrices of linear layers, which Muon then updates instead of AdamW, with the same layer
        decay and schedule. None (paper) uses AdamW for all parameters.
    Raises ValueError for a learning rate below 0, an unknown schedule, timescale < 1 or cooldown_steps < 0.
    """

    def __init__(
        self,
        *,
        lr: float = 8e-4,
        weight_decay: float = 0.1,
        betas: Sequence[float] = (0.9, 0.999),
        layer_decay: float = 0.8,
        warmup_steps: int = 250,
        schedule: str = "step",
        milestones: Sequence[float] = (60_000 / 90_000, 86_666 / 90_000),
        timescale: int = 1000,
        cooldown_steps: int = 0,
        decay_norms_and_biases: bool = False,
        muon_lr: float | None = None,
    ) -> None:
        if lr < 0 or (muon_lr or 0) < 0:
            raise ValueError(f"lr and muon_lr must be at least 0, got {lr} and {muon_lr}")
        if schedule not in ("step", "cosine", "rsqrt"):
            raise ValueError(f"schedule must be 'step', 'cosine' or 'rsqrt', got {schedule!r}")
        if timescale < 1 or cooldown_steps < 0:
            raise ValueError(f"timescale must be at least 1 and cooldown_steps 0, got {timescale} and {cooldown_steps}")
        self.lr, self.weight_decay, self.betas = lr, weight_decay, (betas[0], betas[1])
        self.layer_decay, self.warmup_steps = layer_decay, warmup_steps
        self.schedule, self.milestones = schedule, tuple(milestones)
        self.timescale, self.cooldown_steps = timescale, cooldown_steps
        self.decay_norms_and_biases, self.muon_lr = decay_norms_and_biases, muon_lr

    def build(
        self, model: nn.Module, max_steps: int, create: Callable[..., Optimizer] | None = None
    ) -> tuple[Optimizer, LambdaLR]:
        """Return optimizer and schedule for a run of `max_steps` steps.

        create: called with the optimizer class and its arguments instead of the class, for an optimizer that shards its state.
        """
        optimizer_class = AdamW if self.muon_lr is None else Muon
        optimizer = (create or _create_optimizer)(optimizer_class, self.parameter_groups(model), lr=self.lr, betas=self.betas)
        return optimizer, LambdaLR(optimizer, lambda step: self.lr_factor(step, max_steps))

    def lr_factor(self, step: int, max_steps: int) -> float:
        """Return the factor by which the schedule multiplies the learning rate of every group at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        cooldown = min(1.0, max(0, max_steps - step) / self.cooldown_steps) if self.cooldown_steps else 1.0
        return cooldown * self._scheduled(step, max_steps)

    def _scheduled(self, step: int, max_steps: int) -> float:
        """Return the factor of the schedule without warm-up and cool-down."""
        since_warmup = step - self.warmup_steps
        if self.schedule == "cosine":
            progress = since_warmup / max(1, max_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.schedule == "rsqrt":
            return (1 + since_warmup / self.timescale) ** -0.5
        return 0.1 ** sum(step >= m * max_steps for m in self.milestones)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the trainable parameters grouped by learning rate, weight decay and optimizer (`orthogonal` means Muon).

        Parameters of the image encoder have separate groups: a strategy may shard them, and AdamW's fused operations over a group
        need tensors of one kind.
        """
        groups: dict[tuple[float, float, bool, bool], list[nn.Parameter]] = {}
        depths, muon_names = stage_depths(model), set() if self.muon_lr is None else muon_weight_names(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            uses_muon = name in muon_names
            top_lr = self.muon_lr if uses_muon and self.muon_lr is not None else self.lr
            lr = top_lr * self.layer_decay ** (sum(depths) + 1 - layer_id(name, depths))
            exempt = not self.decay_norms_and_biases and (parameter.ndim < 2 or name.endswith(("pos_embed", "attention_biases")))
            group = (lr, 0.0 if exempt else self.weight_decay, name.startswith("image_encoder."), uses_muon)
            groups.setdefault(group, []).append(parameter)
        return [
            {"params": parameters, "lr": lr, "weight_decay": decay, "orthogonal": uses_muon}
            for (lr, decay, _, uses_muon), parameters in groups.items()
        ]


def _create_optimizer(optimizer_class: Callable[..., Optimizer], groups: list[dict[str, Any]], **values: Any) -> Optimizer:
    return optimizer_class(groups, **values)


def muon_weight_names(model: nn.Module) -> set[str]:
    """Return the names of the weights of linear layers with at least 16 inputs and 16 outputs, which Muon updates."""
    linear = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name for name, m in linear.items() if min(m.in_features, m.out_features) >= 16}


def stage_depths(model: nn.Module) -> tuple[int, ...]:
    """Return the number of blocks of each stage of the image encoder: one stage for a ViT, none for a proposer."""
    encoder = getattr(model, "image_encoder", None)
    if encoder is None:
        return ()
    return encoder.depths if isinstance(encoder, TinyViT) else (len(encoder.blocks),)


def layer_id(name: str, depths: Sequence[int]) -> int:
    """Return the layer of a parameter for layer-wise decay, by ViTDet's rule.

    It is 0 for patch and position embeddings, i + 1 for block i, and the number of blocks + 1 for all other parameters. Blocks
    are counted across stages; the patch merging after a stage belongs to the stage's last block, as in the training of TinyViT.
    """
    if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")):
        return 0
    if block := re.match(r"image_encoder\.(?:layers\.(\d+)\.)?blocks\.(\d+)\.", name):
        return sum(depths[: int(block[1] or 0)]) + int(block[2]) + 1
    if merge := re.match(r"image_encoder\.layers\.(\d+)\.downsample\.", name):
        return sum(depths[: int(merge[1]) + 1])
    return sum(depths) + 1
