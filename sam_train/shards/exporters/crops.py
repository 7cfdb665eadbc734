"""Masks cut to their bounding boxes, as annotation tools store them."""

from __future__ import annotations

import cv2
import numpy as np


def mask_crop(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return an H x W bool mask cut to its bounding box, and the left and upper pixel of the box. The mask must have pixels."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return mask[top : top + height, left : left + width], left, top


def row_runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of an H x W bool mask, row by row, the first of background (it may be 0)."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
