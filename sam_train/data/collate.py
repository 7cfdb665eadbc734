"""Samples to a packed batch."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from sam_train.data.packed import PackedBatch
from sam_train.data.transforms import TrainingSample


def collate(samples: Sequence[TrainingSample]) -> PackedBatch:
    """Pack the masks of all images along one axis; `image_index` says whose each is."""
    size, counts = samples[0].image_size, torch.tensor([len(s.patches) for s in samples])
    images = np.zeros((len(samples), 3, size, size), np.uint8)
    for sample, planes in zip(samples, images, strict=True):
        height, width = sample.size_hw
        for channel, plane in zip(cv2.split(sample.picture), planes, strict=True):
            plane[:height, :width] = channel
    patches = [patch for s in samples for patch in s.patches]
    boxes = [(p.top, p.left, *p.pixels.shape) for p in patches]
    pixels = np.concatenate([np.zeros(0, bool), *(p.pixels.reshape(-1) for p in patches)])
    return PackedBatch(
        keys=tuple(s.key for s in samples),
        images=torch.from_numpy(images),
        sizes_hw=torch.tensor([s.size_hw for s in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        boxes=torch.tensor(boxes, dtype=torch.long).reshape(-1, 4),
        pixels=torch.from_numpy(pixels),
        skipped=tuple(reason for s in samples for reason in s.skipped),
    )
