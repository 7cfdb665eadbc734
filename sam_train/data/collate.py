"""Samples to a packed batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize

from sam_train.data.packed_batch import PackedBatch
from sam_train.data.transforms import TrainingSample


def collate(samples: Sequence[TrainingSample]) -> PackedBatch:
    """Pack the masks of all images along one axis; `image_index` says whose each is."""
    named = [s.names for s in samples if s.names is not None]
    return PackedBatch(
        keys=tuple(s.key for s in samples),
        image_size=samples[0].image_size,
        sizes_hw=torch.from_numpy(np.array([s.size_hw for s in samples])),
        pictures=_joined([s.picture.reshape(-1, 3) for s in samples]),
        image_index=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(s.patches) for s in samples])),
        boxes=_joined([s.patches.boxes for s in samples]),
        pixels=_joined([s.patches.pixels for s in samples]),
        skipped=tuple(reason for s in samples for reason in s.skipped),
        names=tuple(name for names in named for name in names) if len(named) == len(samples) else None,
        text_embeddings=_texts_of(samples),
    )


def _texts_of(samples: Sequence[TrainingSample]) -> Float[torch.Tensor, "N E"] | None:
    """Of length one again, after they were kept in half precision."""
    there = [s.text_embeddings for s in samples if len(s.patches)]
    known = [texts.astype(np.float32) for texts in there if texts is not None]
    return normalize(_joined(known), dim=1) if known and len(known) == len(there) else None


def _joined(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """One after another along the first axis; a single one is not copied."""
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
