"""One training step of a recipe, counted: the image encoder for one image, the rounds for the masks of one image.

The step is that of `sam_train.training.sam_module`: rounds are backpropagated one at a time into the detached embeddings, the
encoder once at the end. So the memory of a step is the encoder's activations and those of the largest round.
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
    saved_activation_bytes,
    to_fake_tensors,
)
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.chunk_sizes import ACCELERATOR_CHUNK_SIZES, override_chunk_sizes
from sam_train.structures import Prediction, Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackwardCost:
    """Forward and backward of one part of the step."""

    work: OperationLog
    saved_activation_bytes: int
    """By autograd, between the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Of one image."""

    parameters: dict[str, int]
    """By part of the model."""
    trained: int
    """Parameters that learn."""
    encoder: ForwardBackwardCost | None
    """None where it is frozen."""
    first_round: ForwardBackwardCost
    later_round: ForwardBackwardCost
    """A round in the middle of the corrections, with the fed-back mask."""
    num_later_rounds: int
    num_masks: int

    def works(self) -> list[tuple[OperationLog, int]]:
        """What is done, and how often."""
        rounds = [(self.first_round.work, 1), (self.later_round.work, self.num_later_rounds)]
        return rounds + ([(self.encoder.work, 1)] if self.encoder else [])

    def flops(self) -> float:
        """Of the step."""
        return sum(sum(work.flops) * times for work, times in self.works())


def count_step(cfg: dict[str, Any], *, num_masks: int) -> StepCost:
    """Count the step of a training config (plain, resolved) for one image with `num_masks` masks.

    Raises ConfigError for a run that learns from a teacher.
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
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        encoder=encoder,
        first_round=rounds[0],
        later_round=rounds[1],
        num_later_rounds=corrections + prompts.get("num_empty_rounds", 2),
        num_masks=num_masks,
    )


def _model(cfg: dict[str, Any]) -> Sam:
    """On the meta device; what is not trained takes no gradients."""
    if cfg.get("teacher"):
        raise ConfigError("sam-train plan counts steps with prompts, and a step with teacher= has none")
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
    with counter, precision, saved_activation_bytes(model) as kept:
        embeddings = model.image_encoder(image)
    with counter:
        embeddings.float().sum().backward()
    return ForwardBackwardCost(work=counter.work, saved_activation_bytes=kept[0])


def _round(
    model: Sam, loss: Any, num_masks: int, num_points: int, precision: AbstractContextManager[Any], *, full: bool
) -> ForwardBackwardCost:
    embeddings = torch.empty(1, *_embedding_shape(model), requires_grad=True)
    labels = torch.ones(num_masks, num_points, dtype=torch.long)
    prompts = Prompts.from_points(torch.zeros(num_masks, dtype=torch.long), torch.empty(num_masks, num_points, 2), labels)
    if num_points > 1:
        prompts = prompts.with_mask(torch.empty(num_masks, 1, model.logits_size, model.logits_size))
    counter = OperationCounter()
    with counter, saved_activation_bytes(model) as kept:
        with precision:
            prediction = model.decode(embeddings, prompts, multimask_output=num_points == 1)
            side = model.image_size if full else model.logits_size
            logits = F.interpolate(prediction.mask_logits, (side, side), mode="bilinear") if full else prediction.mask_logits
            terms = loss(Prediction(mask_logits=logits, iou_scores=prediction.iou_scores), torch.empty(num_masks, side, side))
        terms.total.backward()
    return ForwardBackwardCost(work=counter.work, saved_activation_bytes=kept[0])


def _embedding_shape(model: Sam) -> tuple[int, int, int]:
    """Return channels, height and width of the image embeddings."""
    grid = model.prompt_encoder.grid_size
    return model.image_embedding_dim, grid, grid
