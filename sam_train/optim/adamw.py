"""The paper's optimiser: AdamW, layer-wise decay in the image encoder, linear warm-up, two drops (section A)."""

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
    """Makes the optimiser and its schedule for a model.

    lr, weight_decay, betas: 8e-4, 0.1, (0.9, 0.999) for ViT-H (paper).
    layer_decay: the rate of an encoder layer is lr * layer_decay ** (layers above it); 0.8 for ViT-H (paper), 1 for a
        model that starts from nothing.
    warmup_steps: linear warm-up, 250 (paper).
    schedule: "step" multiplies by 0.1 at each of `milestones`, given as shares of the run (paper: 60k and 86,666 of
        90k steps); "cosine" falls to zero along a half cosine, which suits short runs; "rsqrt" is 1 / sqrt(1 + steps since
        the warm-up / timescale), which does not depend on when the run ends (Zhai et al. 2021, section 3.5; SAM 2).
    timescale: of "rsqrt", in steps; 1000 in SAM 2.
    cooldown_steps: linear fall to zero at the end, on top of the schedule; 5000 in SAM 2, 0 for none.
    decay_norms_and_biases: whether weight decay reaches vectors. The paper does not say; ViTDet-H has no exemptions,
        SAM 2 exempts them, and so do we by default.
    muon_lr: rate of the matrices of linear maps, which Muon then steps instead of AdamW; layer decay and schedule are theirs
        too. None (paper) is AdamW for all.
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
        if schedule not in ("step", "cosine", "rsqrt"):
            raise ValueError(f"schedule must be 'step', 'cosine' or 'rsqrt', got {schedule!r}")
        if timescale < 1 or cooldown_steps < 0:
            raise ValueError(f"timescale must be at least 1 and cooldown_steps 0, got {timescale} and {cooldown_steps}")
        self.lr, self.weight_decay, self.betas = lr, weight_decay, (betas[0], betas[1])
        self.layer_decay, self.warmup_steps = layer_decay, warmup_steps
        self.schedule, self.milestones = schedule, tuple(milestones)
        self.timescale, self.cooldown_steps = timescale, cooldown_steps
        self.decay_norms_and_biases, self.muon_lr = decay_norms_and_biases, muon_lr

    def build(self, model: nn.Module, max_steps: int, make: Callable[..., Optimizer] | None = None) -> tuple[Optimizer, LambdaLR]:
        """Optimiser and schedule for a run of `max_steps` steps. make: called with the optimiser's class and what that is
        called with, for one that shards its state."""
        kind = AdamW if self.muon_lr is None else Muon
        optimizer = (make or _plain)(kind, self.parameter_groups(model), lr=self.lr, betas=self.betas)
        return optimizer, LambdaLR(optimizer, lambda step: self.lr_factor(step, max_steps))

    def lr_factor(self, step: int, max_steps: int) -> float:
        """The share of its full learning rate that every group has at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        cooldown = min(1.0, max(0, max_steps - step) / self.cooldown_steps) if self.cooldown_steps else 1.0
        return cooldown * self._scheduled(step, max_steps)

    def _scheduled(self, step: int, max_steps: int) -> float:
        """Between warm-up and cool-down."""
        since_warmup = step - self.warmup_steps
        if self.schedule == "cosine":
            progress = since_warmup / max(1, max_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.schedule == "rsqrt":
            return (1 + since_warmup / self.timescale) ** -0.5
        return 0.1 ** sum(step >= m * max_steps for m in self.milestones)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters grouped by learning rate, weight decay and optimiser; the encoder's apart, because a strategy may shard
        them, and AdamW's operations over a group take one kind of tensor."""
        groups: dict[tuple[float, float, bool, bool], list[nn.Parameter]] = {}
        depths, matrices = stage_depths(model), set() if self.muon_lr is None else muon_weight_names(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            of_muon = name in matrices
            top = self.muon_lr if of_muon and self.muon_lr is not None else self.lr
            lr = top * self.layer_decay ** (sum(depths) + 1 - layer_id(name, depths))
            exempt = not self.decay_norms_and_biases and (parameter.ndim < 2 or name.endswith(("pos_embed", "attention_biases")))
            kind = (lr, 0.0 if exempt else self.weight_decay, name.startswith("image_encoder."), of_muon)
            groups.setdefault(kind, []).append(parameter)
        return [
            {"params": parameters, "lr": lr, "weight_decay": decay, "orthogonal": of_muon}
            for (lr, decay, _, of_muon), parameters in groups.items()
        ]


def _plain(kind: Callable[..., Optimizer], groups: list[dict[str, Any]], **values: Any) -> Optimizer:
    return kind(groups, **values)


def muon_weight_names(model: nn.Module) -> set[str]:
    """Names of the weights of linear maps with at least 16 inputs and outputs: what has fewer is no matrix to speak of."""
    linear = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {name for name, m in linear.items() if min(m.in_features, m.out_features) >= 16}


def stage_depths(model: nn.Module) -> tuple[int, ...]:
    """How many blocks each stage of the image encoder has; a ViT is one stage, a proposer has none."""
    encoder = getattr(model, "image_encoder", None)
    if encoder is None:
        return ()
    return encoder.depths if isinstance(encoder, TinyViT) else (len(encoder.blocks),)


def layer_id(name: str, depths: Sequence[int]) -> int:
    """0 for the embeddings of patches and positions, i + 1 for block i, blocks + 1 for all else (ViTDet's rule).

    Blocks are counted through the stages; what merges a stage into the next belongs to the stage's last block, as in
    TinyViT's own training.
    """
    if name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")):
        return 0
    if block := re.match(r"image_encoder\.(?:layers\.(\d+)\.)?blocks\.(\d+)\.", name):
        return sum(depths[: int(block[1] or 0)]) + int(block[2]) + 1
    if merge := re.match(r"image_encoder\.layers\.(\d+)\.downsample\.", name):
        return sum(depths[: int(merge[1]) + 1])
    return sum(depths) + 1
