"""Masks that shrink, as rlemasklib's runs (what becomes of them: see `targets`).

`RLEMask.cy` is what its public methods call. Those check and wrap what they get at each call, which is more work than a
small mask: sixty-four of them took a third longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam_train.data.mask_crops import MaskCrop, MaskCrops

_SMALL_PX = 64
_EDGES = np.arange(_SMALL_PX + 1)
_POINT_SHRINK = 2.5


def downsample_rles(masks: Sequence[Any], size_hw: tuple[int, int], to_hw: tuple[int, int]) -> MaskCrops:
    """RLEMasks of an image of `size_hw` pixels as patches of the image resized to `to_hw`, which has fewer."""
    scales = to_hw[0] / size_hw[0], to_hw[1] / size_hw[1]
    little = _average({i: m for i, m in enumerate(masks) if m.cy.area() <= _SMALL_PX**2}, scales, to_hw)
    large = _sample({i: m for i, m in enumerate(masks) if i not in little}, scales, to_hw)
    boxes: list[list[int]] = []
    for index in range(len(masks)):
        patch = little.get(index)
        boxes.append([patch.top, patch.left, *patch.pixels.shape] if patch else large[index]._i_tight_crop().tolist())
    pixels, areas, start = np.zeros(sum(box[2] * box[3] for box in boxes), np.uint8), [], 0
    for index, box in enumerate(boxes):
        end = start + box[2] * box[3]
        if (patch := little.get(index)) is not None:
            pixels[start:end] = patch.pixels.reshape(-1)
            areas.append(np.count_nonzero(patch.pixels))
        else:
            large[index]._decode_into(pixels[start:end].reshape(large[index].shape, order="F"), 1)
            areas.append(large[index].area())
        start = end
    return MaskCrops(np.array(boxes, np.int64).reshape(-1, 4), np.array(areas, np.int64), pixels.view(bool))


def _sample(masks: Mapping[int, Any], scales: tuple[float, float], to_hw: tuple[int, int]) -> dict[int, Any]:
    """Runs of the resized masks, transposed."""
    points = 1 if min(scales) * _POINT_SHRINK >= 1 else 3  # along a side of a pixel
    # Runs go down columns. Asked for the transposed mask, the library leaves out the last of its own two transpositions,
    # and what it writes out column by column are the rows that we want.
    transposed = np.array([[0, scales[0] * points, 0], [scales[1] * points, 0, 0]])
    # The public warp_affine first inverts the matrix to see whether it can be: two thirds of its time.
    moved = {i: mask.cy._r_warp_affine(transposed, to_hw[1] * points, to_hw[0] * points) for i, mask in masks.items()}
    if points == 1:
        return moved
    pooling = (points, points), (points, points), points * points // 2 + 1
    return {i: type(masks[i])._init(runs).avg_pool2d_valid(*pooling).cy for i, runs in moved.items()}


def _average(masks: Mapping[int, Any], scales: tuple[float, float], to_hw: tuple[int, int]) -> dict[int, MaskCrop]:
    """By the rule itself, those of the masks that are at most _SMALL_PX pixels high and wide, all at once."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    starts, squares = [], []
    for index, mask in masks.items():
        runs, sides = mask.cy._r_tight_crop()
        left, top, width, height = sides.tolist()
        if max(width, height) <= _SMALL_PX:
            row, column = math.floor(top * scales[0]), math.floor(left * scales[1])
            last_row, last_column = math.ceil((top + height) * scales[0]), math.ceil((left + width) * scales[1])
            boxes[index] = row, column, min(last_row, to_hw[0]) - row, min(last_column, to_hw[1]) - column
            starts.append((top * scales[0] - row, left * scales[1] - column))
            squares.append(runs._r_to_dense_array(1, 0, "F"))
    if not boxes:
        return {}
    pixels = np.zeros((len(boxes), _SMALL_PX, _SMALL_PX), np.float32)
    for square, dense in zip(pixels, squares, strict=True):
        square[: dense.shape[0], : dense.shape[1]] = dense
    shares = _shares(starts, scales, max(max(box[2:]) for box in boxes.values()))
    resized = shares[:, 0] @ pixels @ shares[:, 1].transpose(0, 2, 1) > 0.5
    return {
        index: MaskCrop(row, column, mask[:rows, :columns])
        for (index, (row, column, rows, columns)), mask in zip(boxes.items(), resized, strict=True)
    }


def _shares(starts: Sequence[tuple[float, float]], scales: tuple[float, float], num: int) -> np.ndarray:
    """N x 2 x num x _SMALL_PX float32: down and across, the share of the i-th resized pixel of a box that its j-th pixel covers.

    starts: where each box begins in the first of its resized pixels, down and across.
    """
    edges = (np.array(starts)[..., None] + np.multiply.outer(scales, _EDGES)).astype(np.float32)
    within = edges[:, :, None] - np.arange(num, dtype=np.float32)[:, None]
    np.maximum(np.minimum(within, 1, out=within), 0, out=within)
    return within[..., 1:] - within[..., :-1]
