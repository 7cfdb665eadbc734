"""Dropped paths that belong to an image of a step, on whatever device and in whatever pass it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sam_train.model.layers import DropPath
from sam_train.prompts.rng import seeded_generator


def draw_drop_paths(encoder: nn.Module, seeds: Sequence[tuple[int, ...]], device: torch.device) -> None:
    """Draw which branches of the next B images' pass are dropped: a pure function of each image's seed."""
    paths = [module for module in encoder.modules() if isinstance(module, DropPath) and module.rate]
    if not paths:
        return
    uniform_draws = torch.stack([torch.rand(len(paths), generator=seeded_generator(seed)) for seed in seeds], 1).to(device)
    for path, numbers in zip(paths, uniform_draws, strict=True):
        path.uniform_draws = numbers
