"""Random seeds of a training step: a pure function of the run's seed, the step and the image.

A resumed run draws what the uninterrupted run would have drawn, on any number of devices and in any number of passes. Dropout is
the exception: it is seeded by the rank, so another number of devices draws other values.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import nn

from sam_train.model.layers import DropPath
from sam_train.prompts.rng import seeded_generator
from sam_train.training.step_metrics import rank_and_world_size


class RngStream(IntEnum):
    """Last number of a seed: separates the random decisions of one step. Other values would change every run."""

    ROUNDS = 1
    PROMPTS = 2
    DROPOUT = 3
    DROP_PATH = 4
    TEXT_PROMPT = 5
    BACKGROUND = 6


def image_seeds(num_images: int, stream: RngStream, *, seed: int, step: int, offset: int) -> list[tuple[int, ...]]:
    """Return one seed for each image of a pass: (seed, step, index of the image in the step, stream).

    DistributedPositionSampler assigns the images of a step to ranks in turn: image i of a rank has index i x world size + rank.

    offset: number of images that this process has already taken in earlier passes of the step.
    """
    rank, world_size = rank_and_world_size()
    indices = [(offset + i) * world_size + rank for i in range(num_images)]
    return [(seed, step, index, int(stream)) for index in indices]


def draw_drop_paths(encoder: nn.Module, seeds: Sequence[tuple[int, ...]], device: torch.device) -> None:
    """Draw which residual branches of the next forward pass are dropped (stochastic depth), from one seed per image."""
    drop_paths = [module for module in encoder.modules() if isinstance(module, DropPath) and module.rate]
    if not drop_paths:
        return
    uniform = torch.stack([torch.rand(len(drop_paths), generator=seeded_generator(seed)) for seed in seeds], 1).to(device)
    for drop_path, values in zip(drop_paths, uniform, strict=True):
        drop_path.uniform_draws = values
