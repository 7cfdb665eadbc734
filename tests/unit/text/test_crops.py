"""Tests that object crops are squares around the centre of the object, black outside the image."""

from __future__ import annotations

import numpy as np
import pytest

from sam_train.text.crops import crop_object

IMAGE = np.random.default_rng(0).integers(1, 256, (40, 60, 3), dtype=np.uint8)


def box_mask(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_crop_at_native_size_copies_the_image() -> None:
    mask = box_mask(10, 20, 8, 16)
    crop = crop_object(IMAGE, mask, expansion=1, black_background=False, size=16)
    assert np.array_equal(crop.pixels, IMAGE[6:22, 20:36])
    assert np.array_equal(crop.mask, mask[6:22, 20:36])


def test_expansion_scales_the_longer_side() -> None:
    crop = crop_object(IMAGE, box_mask(10, 20, 8, 10), expansion=2, black_background=False, size=20)
    assert np.array_equal(crop.pixels, IMAGE[4:24, 15:35])


def test_black_background_keeps_the_object() -> None:
    mask = box_mask(10, 20, 8, 16)
    crop = crop_object(IMAGE, mask, expansion=1, black_background=True, size=16)
    assert np.array_equal(crop.pixels[crop.mask], IMAGE[mask])
    assert not crop.pixels[~crop.mask].any()


def test_crop_is_black_outside_the_image() -> None:
    crop = crop_object(IMAGE, box_mask(0, 0, 10, 10), expansion=2, black_background=False, size=20)
    assert not crop.pixels[:5].any()
    assert not crop.pixels[:, :5].any()
    assert np.array_equal(crop.pixels[5:, 5:], IMAGE[:15, :15])


@pytest.mark.parametrize("size", [7, 64])
def test_resized_crop_keeps_the_object_centred(size: int) -> None:
    crop = crop_object(IMAGE, box_mask(10, 20, 14, 14), expansion=2, black_background=False, size=size)
    assert crop.pixels.shape == (size, size, 3)
    assert abs(crop.mask.mean() - 0.25) < 0.1
    rows, columns = np.nonzero(crop.mask)
    assert abs(rows.mean() - (size - 1) / 2) < 0.6
    assert abs(columns.mean() - (size - 1) / 2) < 0.6


def test_rejects_an_empty_mask() -> None:
    with pytest.raises(ValueError, match="its mask is empty"):
        crop_object(IMAGE, np.zeros(IMAGE.shape[:2], bool), expansion=1, black_background=False, size=8)
