"""Counts one training step of a config, for one image and its masks.

The step is that of `sam_train.training.sam_module`: the rounds are backpropagated one at a time into the detached embeddings, and
the encoder once at the end. So a step needs memory for the encoder's activations and for those of the largest round.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sam_train.config import build
from sam_train.cost_model.op_counter import (
    FusedAttention,
    OperationCounter,
    OperationLog,
    count_saved_activations,
    to_fake_tensors,
)
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.chunk_sizes import ACCELERATOR_CHUNK_SIZES, override_chunk_sizes
from sam_train.structures import Prediction, Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackwardCost:
    """Forward and backward pass of one part of the step."""

    operations: OperationLog
    saved_activation_bytes: int
    """Bytes that autograd saves between the two passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Counted cost of a step for one image."""

    parameters: dict[str, int]
    """Number of parameters, by part of the model."""
    num_trained: int
    """Number of trained parameters."""
    encoder: ForwardBackwardCost | None
    """Cost of the image encoder; None if it is frozen."""
    first_round: ForwardBackwardCost
    later_round: ForwardBackwardCost
    """Cost of a round in the middle of the corrections, with the fed-back mask."""
    num_later_rounds: int
    num_masks: int

    def operations(self) -> list[tuple[OperationLog, int]]:
        """Return the operations of each part of the step and the number of times that they are run."""
        rounds = [(self.first_round.operations, 1), (self.later_round.operations, self.num_later_rounds)]
        return rounds + ([(self.encoder.operations, 1)] if self.encoder else [])

    def flops(self) -> float:
        """Return the floating-point operations of the step."""
        return sum(sum(operations.flops) * repeats for operations, repeats in self.operations())


def count_step(cfg: dict[str, Any], *, num_masks: int) -> StepCost:
    """Count the step of a training config (plain, resolved) for one image with `num_masks` masks.

    Raises ConfigError for a distillation, which has no rounds.
    """
    model = _model(cfg)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    loss, prompts = build(cfg["losses"]), cfg["prompts"]
    half = str(cfg["trainer"]["precision"]).startswith("bf16")
    full = cfg["training"]["loss_resolution"] == "full"
    corrections = prompts.get("num_corrections", 8)
    with FakeTensorMode(), FusedAttention(), override_chunk_sizes(ACCELERATOR_CHUNK_SIZES):
        to_fake_tensors(model).train()
        encoder = None if cfg["freeze_image_encoder"] else _encoder(model, _precision(half=half))
        rounds = [
            _round(model, loss, num_masks, points, _precision(half=half), full=full) for points in (1, 1 + (corrections + 1) // 2)
        ]
    return StepCost(
        parameters=parameters,
        num_trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        encoder=encoder,
        first_round=rounds[0],
        later_round=rounds[1],
        num_later_rounds=corrections + prompts.get("num_mask_only_rounds", 2),
        num_masks=num_masks,
    )


def _model(cfg: dict[str, Any]) -> Sam:
    """Return the model on the meta device; parameters that are not trained take no gradients."""
    if cfg.get("teacher"):
        raise ConfigError("sam-train plan counts steps with prompts, but a step with teacher= has none: remove teacher=")
    with torch.device("meta"):
        model: Sam = build(cfg["model"])
        if cfg.get("lora"):
            build(cfg["lora"]).inject(model)
    if cfg["freeze_image_encoder"]:
        model.image_encoder.requires_grad_(requires_grad=False)
    return model


def _precision(*, half: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if half else nullcontext()


def _encoder(model: Sam, precision: AbstractContextManager[Any]) -> ForwardBackwardCost:
    counter, image = OperationCounter(), torch.empty(1, 3, model.image_size, model.image_size)
    with counter, precision, count_saved_activations(model) as saved_bytes:
        embeddings = model.image_encoder(image)
    with counter:
        embeddings.float().sum().backward()
    return ForwardBackwardCost(operations=counter.operations, saved_activation_bytes=saved_bytes[0])


def _round(
    model: Sam, loss: Any, num_masks: int, num_points: int, precision: AbstractContextManager[Any], *, full: bool
) -> ForwardBackwardCost:
    embeddings = torch.empty(1, *_embedding_shape(model), requires_grad=True)
    labels = torch.ones(num_masks, num_points, dtype=torch.long)
    prompts = Prompts.from_points(torch.zeros(num_masks, dtype=torch.long), torch.empty(num_masks, num_points, 2), labels)
    if num_points > 1:
        prompts = prompts.with_mask(torch.empty(num_masks, 1, model.logits_size, model.logits_size))
    counter = OperationCounter()
    with counter, count_saved_activations(model) as saved_bytes:
        with precision:
            prediction = model.decode(embeddings, prompts, multimask_output=num_points == 1)
            side = model.image_size if full else model.logits_size
            logits = F.interpolate(prediction.mask_logits, (side, side), mode="bilinear") if full else prediction.mask_logits
            terms = loss(Prediction(mask_logits=logits, iou_scores=prediction.iou_scores), torch.empty(num_masks, side, side))
        terms.total.backward()
    return ForwardBackwardCost(operations=counter.operations, saved_activation_bytes=saved_bytes[0])


def _embedding_shape(model: Sam) -> tuple[int, int, int]:
    """Return channels, height and width of the image embeddings."""
    grid = model.prompt_encoder.grid_size
    return model.image_embedding_dim, grid, grid
