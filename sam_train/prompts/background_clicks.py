"""Clicks on pixels that no mask covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sam_train.prompts.rng import PerImageRng
from sam_train.prompts.sampling import sample_uniform_points
from sam_train.structures import Batch, PointLabel, Prompts


def background_clicks(batch: Batch, clicks_per_image: int, seeds: Sequence[tuple[int, ...]]) -> Prompts:
    """Return foreground clicks drawn uniformly from the pixels of each image that none of its masks covers.

    seeds: one tuple of non-negative integers for each image of the batch. Images without such a pixel have no clicks.
    """
    outside = torch.zeros(len(batch.keys), *batch.target_masks.shape[1:], dtype=torch.bool, device=batch.target_masks.device)
    for image, (height, width) in zip(outside, batch.sizes_hw.tolist(), strict=True):
        image[:height, :width] = True
    for index, mask in zip(batch.image_index.tolist(), batch.target_masks, strict=True):
        outside[index] &= ~mask
    images = outside.flatten(1).any(1).nonzero()[:, 0].repeat_interleave(clicks_per_image)
    points = sample_uniform_points(outside[images], PerImageRng(seeds, images))
    labels = torch.full((len(images), 1), PointLabel.FOREGROUND, dtype=torch.long, device=points.device)
    return Prompts.from_points(images, points[:, None], labels)
