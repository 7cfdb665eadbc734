"""Collation of samples into a packed batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize

from sam_train.data.packed_batch import PackedBatch
from sam_train.data.transforms import TrainingSample


def collate(samples: Sequence[TrainingSample]) -> PackedBatch:
    """Pack the masks of all images along one axis; `image_index` is the index of each mask's image."""
    names = [s.names for s in samples if s.names is not None]
    return PackedBatch(
        keys=tuple(s.key for s in samples),
        image_size=samples[0].image_size,
        sizes_hw=torch.from_numpy(np.array([s.size_hw for s in samples])),
        image_pixels=_concatenate([s.unpadded_image.reshape(-1, 3) for s in samples]),
        image_index=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(s.mask_crops) for s in samples])),
        mask_boxes=_concatenate([s.mask_crops.boxes for s in samples]),
        mask_pixels=_concatenate([s.mask_crops.pixels for s in samples]),
        skipped=tuple(reason for s in samples for reason in s.skipped),
        names=tuple(name for sample_names in names for name in sample_names) if len(names) == len(samples) else None,
        text_embeddings=_text_embeddings(samples),
        sources=tuple(s.source for s in samples if s.source is not None),
        dropped=sum((Counter(s.dropped) for s in samples), Counter()),
    )


def _text_embeddings(samples: Sequence[TrainingSample]) -> Float[torch.Tensor, "N E"] | None:
    """Return the text embeddings of all masks, normalised again after storage in half precision; None if any are missing."""
    stored = [s.text_embeddings for s in samples if len(s.mask_crops)]
    embeddings = [rows.astype(np.float32) for rows in stored if rows is not None]
    return normalize(_concatenate(embeddings), dim=1) if embeddings and len(embeddings) == len(stored) else None


def _concatenate(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Concatenate along the first axis, without a copy if there is one array."""
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
