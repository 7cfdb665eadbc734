"""Masks as the pixels of their boxes: of 64 masks at 1024 pixels these are two of 64 megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """The part of a mask that holds all of its pixels: h x w bool, its first row and column in a frame."""

    top: int
    left: int
    pixels: np.ndarray

    def rot90(self, turns: int, frame_hw: tuple[int, int]) -> MaskCrop:
        """As np.rot90 turns the frame of that height and width."""
        patch, (height, width) = self, frame_hw
        for _ in range(turns % 4):
            patch = MaskCrop(width - patch.left - patch.pixels.shape[1], patch.top, np.rot90(patch.pixels))
            height, width = width, height
        return patch

    def mirrored(self, frame_width: int) -> MaskCrop:
        """Left and right exchanged."""
        return MaskCrop(self.top, frame_width - self.left - self.pixels.shape[1], self.pixels[:, ::-1])

    def cut(self, top: int, left: int, height: int, width: int) -> MaskCrop:
        """What lies in a window of the frame, in the window's own frame."""
        rows = slice(max(top - self.top, 0), max(top + height - self.top, 0))
        columns = slice(max(left - self.left, 0), max(left + width - self.left, 0))
        return MaskCrop(max(self.top - top, 0), max(self.left - left, 0), self.pixels[rows, columns])

    def paint(self, mask: np.ndarray) -> None:
        """Write the patch into an H x W bool mask that is empty there."""
        height, width = self.pixels.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.pixels


@dataclass(frozen=True, slots=True)
class MaskCrops:
    """Patches of N masks, packed."""

    boxes: np.ndarray
    """N x 4 int64: first row, first column, rows, columns."""
    areas: np.ndarray
    """N int64: pixels that are set."""
    pixels: np.ndarray
    """Bool: the pixels of all patches, row by row, one patch after the other."""

    @staticmethod
    def from_crops(patches: Iterable[MaskCrop]) -> MaskCrops:
        """In their order."""
        known = [*patches]
        boxes = [(patch.top, patch.left, *patch.pixels.shape) for patch in known]
        areas = [np.count_nonzero(patch.pixels) for patch in known]
        pixels = np.concatenate([np.zeros(0, bool), *(patch.pixels.reshape(-1) for patch in known)])
        return MaskCrops(np.array(boxes, np.int64).reshape(-1, 4), np.array(areas, np.int64), pixels)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[MaskCrop]:
        start = 0
        for top, left, rows, columns in self.boxes.tolist():
            end = start + rows * columns
            yield MaskCrop(top, left, self.pixels[start:end].reshape(rows, columns))
            start = end

    def of_at_least(self, num_pixels: int) -> MaskCrops:
        """Those with as many pixels set."""
        large = self.areas >= num_pixels
        if large.all():
            return self
        return MaskCrops.from_crops(patch for patch, is_large in zip(self, large, strict=True) if is_large)


def crop_mask(mask: np.ndarray) -> MaskCrop:
    """The patch of an H x W bool mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return MaskCrop(0, 0, mask[:0, :0])
    return MaskCrop(int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
