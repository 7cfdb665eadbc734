"""Tests that masks resized from RLE match `geometry.resize_masks`: exactly for small or enlarged masks, else within a bound."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sam_train.data import mask_targets
from sam_train.data.mask_crops import MaskCrop
from sam_train.data.mask_targets import resize_rles
from sam_train.errors import ShardError
from sam_train.geometry import resize_masks
from sam_train.rle import encode_rle


def random_masks(height: int, width: int, largest: float, num: int = 12) -> list[np.ndarray]:
    """Return masks of star-shaped polygons, some of which extend beyond the frame."""
    rng, masks = np.random.default_rng(0), []
    angles = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    for index in range(num):
        waves = sum(rng.normal() / k**1.5 * 0.3 * np.cos(k * angles + rng.uniform(0, 7)) for k in range(2, 9))
        radius = np.clip(1 + waves, 0.3, 2) * largest * (index + 1) / num
        points = rng.uniform(0, 1, 2) * (width, height) + np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        masks.append(mask.astype(bool))
    return [mask for mask in masks if mask.any()]


def resize_from_rle(masks: list[np.ndarray], to_hw: tuple[int, int]) -> list[np.ndarray]:
    crops = resize_rles([encode_rle(mask) for mask in masks], masks[0].shape, to_hw)
    resized = []
    for crop in crops:
        frame = np.zeros(to_hw, bool)
        crop.paste_into(frame)
        resized.append(frame)
    return resized


@pytest.mark.parametrize(
    ("size_hw", "to_hw"),
    [
        ((60, 90), (43, 64)),
        ((200, 300), (67, 100)),
        ((64, 64), (32, 32)),
        ((50, 40), (100, 80)),
        ((33, 21), (64, 41)),
        ((40, 40), (40, 40)),
    ],
)
def test_small_and_enlarged_masks_are_exact(size_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
    masks = random_masks(*size_hw, largest=20)
    pairs = zip(resize_from_rle(masks, to_hw), resize_masks(np.stack(masks), *to_hw), strict=True)
    differing = sum(int((a ^ b).sum()) for a, b in pairs)
    assert differing <= 2  # pixels that are covered by half: OpenCV sums in another order


@pytest.mark.parametrize("to_hw", [(683, 1024), (1366, 2048), (342, 512), (171, 256)])
def test_large_masks_are_exact_within_a_bound(to_hw: tuple[int, int]) -> None:
    masks = random_masks(1500, 2250, largest=400)
    pairs = zip(resize_from_rle(masks, to_hw), resize_masks(np.stack(masks), *to_hw), strict=True)
    ious = [(a & b).sum() / (a | b).sum() for a, b in pairs]
    assert min(ious) > 0.96
    assert np.mean(ious) > 0.985


def test_is_exact_without_rlemasklib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_targets, "_rle_mask_class", lambda: None)
    masks = random_masks(150, 225, largest=60)
    assert np.array_equal(np.stack(resize_from_rle(masks, (68, 102))), resize_masks(np.stack(masks), 68, 102))


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    ("rle", "field"),
    [
        ({"size": [9, 8], "counts": "0l1"}, "segmentation.size"),
        ({"size": [8, 8], "counts": "1"}, "segmentation.counts"),
        ({"size": [8, 8], "counts": ""}, "segmentation.counts"),
        ({"size": [8, 8], "counts": "oooooooooooooooooooo"}, "segmentation.counts"),
        ({"size": [8, 8], "counts": "\x00\xff"}, "segmentation.counts"),
    ],
)
def test_rejects_an_invalid_rle(rle: dict[str, object], field: str, present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not present:
        monkeypatch.setattr(mask_targets, "_rle_mask_class", lambda: None)
    with pytest.raises(ShardError) as caught:
        resize_rles([rle], (8, 8), (4, 4), key="k")
    assert (caught.value.key, caught.value.field) == ("k", field)


def test_crops_transform_like_their_frames() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 5:22] = np.random.default_rng(0).random((6, 17)) < 0.5
    crop = MaskCrop.from_mask(mask)

    def paste(one: MaskCrop, shape: tuple[int, ...]) -> np.ndarray:
        frame = np.zeros(shape, bool)
        one.paste_into(frame)
        return frame

    for turns in range(4):
        turned = np.rot90(mask, turns)
        assert np.array_equal(paste(crop.rot90(turns, mask.shape), turned.shape), turned)
    assert np.array_equal(paste(crop.flip(30), mask.shape), mask[:, ::-1])
    for top, left in [(0, 0), (5, 8), (4, 25), (15, 0)]:
        window = mask[top : top + 4, left : left + 6]
        assert np.array_equal(paste(crop.clip_to_window(top, left, 4, 6), (4, 6))[: window.shape[0], : window.shape[1]], window)
