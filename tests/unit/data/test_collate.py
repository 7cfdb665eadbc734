"""Tests that the masks of all images are packed along one axis, with `image_index` as the index of their image."""

from __future__ import annotations

import numpy as np
import torch

from sam_train.data.collate import collate
from sam_train.data.transforms import TrainingSample


def make_sample(key: str, num_masks: int, *, skipped: tuple[str, ...] = ()) -> TrainingSample:
    rng = np.random.default_rng(num_masks)
    image = rng.integers(0, 256, (8, num_masks, 3)).astype(np.uint8)
    return TrainingSample.from_masks(key, image, rng.random((num_masks, 8, 8)) < 0.5, skipped=skipped)


def test_packs_samples() -> None:
    samples = [
        make_sample("a", 2, skipped=("no_mask",)),
        make_sample("b", 1),
        make_sample("c", 3, skipped=("wrong_size", "no_mask")),
    ]
    batch = collate(samples)
    assert batch.keys == ("a", "b", "c")
    assert batch.image_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.sizes_hw.tolist() == [[8, 2], [8, 1], [8, 3]]
    assert batch.skipped == ("no_mask", "wrong_size", "no_mask")
    assert batch.images.dtype == torch.uint8
    assert batch.target_masks.dtype == torch.bool
    for i, one in enumerate(samples):
        assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), one.image)
        assert np.array_equal(batch.target_masks[batch.image_index == i].numpy(), one.masks)
