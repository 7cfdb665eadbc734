"""Masks cropped to their bounding boxes: two megabytes for 64 masks at 1024 pixels, in place of 64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """A rectangular part of a mask that contains all of its pixels, and its position in the frame."""

    top: int
    """First row in the frame."""
    left: int
    """First column in the frame."""
    pixels: np.ndarray
    """h x w bool."""

    @staticmethod
    def from_mask(mask: np.ndarray) -> MaskCrop:
        """Crop an H x W bool mask to its bounding box. The crop of an empty mask has no pixels."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return MaskCrop(0, 0, mask[:0, :0])
        return MaskCrop(int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    def rot90(self, turns: int, frame_hw: tuple[int, int]) -> MaskCrop:
        """Rotate with a frame of that height and width, as `np.rot90` rotates the frame."""
        crop, (height, width) = self, frame_hw
        for _ in range(turns % 4):
            crop = MaskCrop(width - crop.left - crop.pixels.shape[1], crop.top, np.rot90(crop.pixels))
            height, width = width, height
        return crop

    def flip(self, frame_width: int) -> MaskCrop:
        """Mirror left to right with a frame of that width."""
        return MaskCrop(self.top, frame_width - self.left - self.pixels.shape[1], self.pixels[:, ::-1])

    def clip_to_window(self, top: int, left: int, height: int, width: int) -> MaskCrop:
        """Return the part inside a window of the frame, in the coordinates of the window."""
        rows = slice(max(top - self.top, 0), max(top + height - self.top, 0))
        columns = slice(max(left - self.left, 0), max(left + width - self.left, 0))
        return MaskCrop(max(self.top - top, 0), max(self.left - left, 0), self.pixels[rows, columns])

    def paste_into(self, mask: np.ndarray) -> None:
        """Write the crop into an H x W bool mask that is empty there."""
        height, width = self.pixels.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.pixels


@dataclass(frozen=True, slots=True)
class MaskCrops:
    """The crops of N masks, packed into one array."""

    boxes: np.ndarray
    """N x 4 int64: first row, first column, number of rows, number of columns."""
    areas: np.ndarray
    """N int64: number of set pixels."""
    pixels: np.ndarray
    """Bool: the pixels of all crops in row-major order, one crop after the other."""

    @staticmethod
    def from_crops(crops: Iterable[MaskCrop]) -> MaskCrops:
        """Pack crops in their order."""
        crops = [*crops]
        boxes = [(crop.top, crop.left, *crop.pixels.shape) for crop in crops]
        areas = [np.count_nonzero(crop.pixels) for crop in crops]
        pixels = np.concatenate([np.zeros(0, bool), *(crop.pixels.reshape(-1) for crop in crops)])
        return MaskCrops(np.array(boxes, np.int64).reshape(-1, 4), np.array(areas, np.int64), pixels)

    @staticmethod
    def concatenate(parts: Sequence[MaskCrops]) -> MaskCrops:
        """Join the crops of any number of parts in their order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return MaskCrops.from_crops([])
        joined = (np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "areas", "pixels"))
        return MaskCrops(*joined)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[MaskCrop]:
        start = 0
        for top, left, rows, columns in self.boxes.tolist():
            end = start + rows * columns
            yield MaskCrop(top, left, self.pixels[start:end].reshape(rows, columns))
            start = end

    def with_min_area(self, num_pixels: int) -> MaskCrops:
        """Return the crops of masks with at least `num_pixels` set pixels."""
        is_large = self.areas >= num_pixels
        if is_large.all():
            return self
        return MaskCrops.from_crops(crop for crop, keep in zip(self, is_large, strict=True) if keep)
