"""Samples to a packed batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sam_train.data.transforms import TrainingSample
from sam_train.structures import Batch


def collate(samples: Sequence[TrainingSample]) -> Batch:
    """Pack the masks of all images along one axis; `image_index` says whose each is."""
    counts = torch.tensor([len(s.masks) for s in samples])
    return Batch(
        keys=tuple(s.key for s in samples),
        images=torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).contiguous(),
        sizes_hw=torch.tensor([s.size_hw for s in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        target_masks=torch.from_numpy(np.concatenate([s.masks for s in samples])),
        skipped=tuple(reason for s in samples for reason in s.skipped),
    )
