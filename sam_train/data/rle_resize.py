"""Downsampling of masks in the run-length encoding of rlemasklib (`mask_targets` defines the result).

`RLEMask.cy` is the object to which the library's public methods delegate. Those check and wrap their arguments at each call,
which costs more than the work on a small mask: sixty-four of them took a third longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam_train.data.mask_crops import MaskCrop, MaskCrops

_SMALL_PX = 64
_EDGES = np.arange(_SMALL_PX + 1)
_MAX_SINGLE_POINT_SHRINK = 2.5


def downsample_rles(masks: Sequence[Any], size_hw: tuple[int, int], to_hw: tuple[int, int]) -> MaskCrops:
    """Resize RLEMasks of an image of `size_hw` pixels to `to_hw`, which has fewer pixels, as crops in the resized frame."""
    scales = to_hw[0] / size_hw[0], to_hw[1] / size_hw[1]
    small = _average_small({i: m for i, m in enumerate(masks) if m.cy.area() <= _SMALL_PX**2}, scales, to_hw)
    large = _sample_large({i: m for i, m in enumerate(masks) if i not in small}, scales, to_hw)
    boxes: list[list[int]] = []
    for index in range(len(masks)):
        crop = small.get(index)
        boxes.append([crop.top, crop.left, *crop.pixels.shape] if crop else large[index]._i_tight_crop().tolist())
    pixels, areas, start = np.zeros(sum(box[2] * box[3] for box in boxes), np.uint8), [], 0
    for index, box in enumerate(boxes):
        end = start + box[2] * box[3]
        if (crop := small.get(index)) is not None:
            pixels[start:end] = crop.pixels.reshape(-1)
            areas.append(np.count_nonzero(crop.pixels))
        else:
            large[index]._decode_into(pixels[start:end].reshape(large[index].shape, order="F"), 1)
            areas.append(large[index].area())
        start = end
    return MaskCrops(np.array(boxes, np.int64).reshape(-1, 4), np.array(areas, np.int64), pixels.view(bool))


def _sample_large(masks: Mapping[int, Any], scales: tuple[float, float], to_hw: tuple[int, int]) -> dict[int, Any]:
    """Return the runs of the resized masks, transposed, by sampling one or nine points of each pixel."""
    points = 1 if min(scales) * _MAX_SINGLE_POINT_SHRINK >= 1 else 3  # along each side of a pixel
    # Runs are column-major. For a transposed result the library skips the second of its two transpositions, and writing that
    # result column by column gives the rows of the mask.
    transposed = np.array([[0, scales[0] * points, 0], [scales[1] * points, 0, 0]])
    # The public warp_affine first checks that the matrix is invertible, which takes two thirds of its time.
    warped = {i: mask.cy._r_warp_affine(transposed, to_hw[1] * points, to_hw[0] * points) for i, mask in masks.items()}
    if points == 1:
        return warped
    pooling = (points, points), (points, points), points * points // 2 + 1
    return {i: type(masks[i])._init(runs).avg_pool2d_valid(*pooling).cy for i, runs in warped.items()}


def _average_small(masks: Mapping[int, Any], scales: tuple[float, float], to_hw: tuple[int, int]) -> dict[int, MaskCrop]:
    """Return the exact result for the masks that are at most _SMALL_PX pixels high and wide, computed in one batch."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    offsets, dense_crops = [], []
    for index, mask in masks.items():
        runs, sides = mask.cy._r_tight_crop()
        left, top, width, height = sides.tolist()
        if max(width, height) <= _SMALL_PX:
            row, column = math.floor(top * scales[0]), math.floor(left * scales[1])
            last_row, last_column = math.ceil((top + height) * scales[0]), math.ceil((left + width) * scales[1])
            boxes[index] = row, column, min(last_row, to_hw[0]) - row, min(last_column, to_hw[1]) - column
            offsets.append((top * scales[0] - row, left * scales[1] - column))
            dense_crops.append(runs._r_to_dense_array(1, 0, "F"))
    if not boxes:
        return {}
    pixels = np.zeros((len(boxes), _SMALL_PX, _SMALL_PX), np.float32)
    for square, dense in zip(pixels, dense_crops, strict=True):
        square[: dense.shape[0], : dense.shape[1]] = dense
    weights = _coverage_weights(offsets, scales, max(max(box[2:]) for box in boxes.values()))
    resized = weights[:, 0] @ pixels @ weights[:, 1].transpose(0, 2, 1) > 0.5
    return {
        index: MaskCrop(row, column, mask[:rows, :columns])
        for (index, (row, column, rows, columns)), mask in zip(boxes.items(), resized, strict=True)
    }


def _coverage_weights(offsets: Sequence[tuple[float, float]], scales: tuple[float, float], num: int) -> np.ndarray:
    """Return N x 2 x num x _SMALL_PX float32: the share of a box's i-th resized pixel that its j-th pixel covers, per axis.

    offsets: vertical and horizontal offset of each box in the first of its resized pixels.
    """
    edges = (np.array(offsets)[..., None] + np.multiply.outer(scales, _EDGES)).astype(np.float32)
    within = edges[:, :, None] - np.arange(num, dtype=np.float32)[:, None]
    np.maximum(np.minimum(within, 1, out=within), 0, out=within)
    return within[..., 1:] - within[..., :-1]
