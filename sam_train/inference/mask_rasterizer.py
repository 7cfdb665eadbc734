"""Masks at the size of the image, which need not be there: counts, boxes and runs from logits on the decoder's grid.

Two bilinear steps bring logits to an image (geometry.Resize.logits_to_image). Together they make each pixel a mean of 3 x 3
neighbouring logits at most, so it lies between the least and the greatest of the nine. All pixels with the same neighbours are
a cell. Where the nine lie on one side of a threshold, so do all pixels of the cell; only those of the others, the *mixed*
cells along the outline, are computed.

N masks · h w the decoder's grid · I J cells: rows and columns, one more than the grid's · P Q rows and columns of pixels in the
largest cell · K some cells of any of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sam_train.geometry import InterpolationTaps, Resize
from sam_train.masks import extent_per_row

# Pixels that are computed at once: half a megabyte, so that a CPU does it within its caches.
VALUES_AT_ONCE = 1 << 17
# Pixels of the image of which there is a mask at once while its runs are found.
PIXELS_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class Axis:
    """The cells along one axis."""

    start: Int[Tensor, " I"]
    """The first pixel of each."""
    length: Int[Tensor, " I"]
    """How many pixels, perhaps none."""
    weights: Float[Tensor, "3 P I"]
    """Of the three neighbours for each pixel; NaN past the last one, which is above no threshold."""

    @staticmethod
    def of(taps: InterpolationTaps, grid: int, device: torch.device) -> Axis:
        """From what `geometry` says of each pixel."""
        cell = taps.first + 1  # the first cell lies before the middle of the grid's first place
        length = np.bincount(cell, minlength=grid + 1)
        start = np.cumsum(length) - length
        weights = np.full((3, length.max(), grid + 1), np.nan, np.float32)
        weights[:, np.arange(len(cell)) - start[cell], cell] = taps.weights.T
        return Axis(*(torch.from_numpy(x).to(device) for x in (start, length, weights)))

    def __getitem__(self, cells: slice) -> Axis:
        """Some of the cells, where they are."""
        return Axis(self.start[cells], self.length[cells], self.weights[:, :, cells])


@dataclass(frozen=True, slots=True)
class Cut:
    """What a threshold makes of masks."""

    threshold: float
    above: Bool[Tensor, "N I J"]
    """Cells all of whose pixels are above it."""
    mixed: Bool[Tensor, "N I J"]
    """Cells of which the grid does not tell."""

    def __getitem__(self, masks: Tensor) -> Cut:
        """Of some of the masks."""
        return Cut(self.threshold, self.above[masks], self.mixed[masks])


@dataclass(frozen=True, slots=True)
class LogitPatch:
    """The part of a mask's padded logits that decides where it is above 0, and the row and column of its first cell."""

    row: int
    column: int
    logits: Float[Tensor, "_ _"]


@dataclass(frozen=True, slots=True)
class MaskRasterizer:
    """All cells of an image, or a window of them."""

    rows: Axis
    columns: Axis

    @staticmethod
    @lru_cache(maxsize=64)
    def of(resize: Resize, grid: int, device: torch.device) -> MaskRasterizer:
        """Those of an image for logits on `grid` x `grid`."""
        rows, columns = (Axis.of(taps, grid, device) for taps in resize.interpolation_taps(grid))
        return MaskRasterizer(rows, columns)

    @staticmethod
    def padded(logits: Float[Tensor, "N h w"]) -> Float[Tensor, "N h+3 w+3"]:
        """The logits with their ends repeated: one before and two after, so that each cell has nine."""
        return F.pad(logits, (1, 2, 1, 2), mode="replicate")

    def cut(self, padded: Float[Tensor, "N h w"], threshold: float) -> Cut:
        """Decide each cell by its nine logits."""
        low = padded > threshold
        above, touched = _in_threes(low, torch.bitwise_and), _in_threes(low, torch.bitwise_or)
        seen = (self.rows.length > 0)[:, None] & (self.columns.length > 0)
        return Cut(threshold, above & seen, (above ^ touched) & seen)

    def pixels(self, cells: Bool[Tensor, "N I J"]) -> Int[Tensor, " N"]:
        """How many pixels some cells of each mask have."""
        by_row = cells.float() @ self.columns.length.float()  # whole numbers below 2^24: exact
        return (by_row.long() * self.rows.length).sum(1)

    def count(self, padded: Float[Tensor, "N h w"], cut: Cut) -> Int[Tensor, " N"]:
        """How many pixels of each mask are above the threshold."""
        counts = self.pixels(cut.above)
        for n, _, _, above in self._computed(padded, cut.mixed, cut.threshold):
            counts.index_add_(0, n, above.sum((0, 1), dtype=torch.int32).long())
        return counts

    def boxes(self, padded: Float[Tensor, "N h w"], cut: Cut) -> Int[Tensor, "N 4"]:
        """XYXY around the pixels above the threshold, right and bottom exclusive; zeros where there are none."""
        rows, columns = cut.above.any(2), cut.above.any(1)
        # What lies between rows and between columns that are decided widens no box.
        between = _filled(rows)[:, :, None] & _filled(columns)[:, None]
        pixel_rows, pixel_columns = (
            some.repeat_interleave(axis.length, 1) for some, axis in ((rows, self.rows), (columns, self.columns))
        )
        first_row, first_column = self.rows.start[0], self.columns.start[0]
        for n, i, j, above in self._computed(padded, cut.mixed & ~between, cut.threshold):
            p, k = above.any(1).nonzero().unbind(1)
            pixel_rows[n[k], self.rows.start[i[k]] + p - first_row] = True
            q, k = above.any(0).nonzero().unbind(1)
            pixel_columns[n[k], self.columns.start[j[k]] + q - first_column] = True
        (top, bottom), (left, right) = extent_per_row(pixel_rows), extent_per_row(pixel_columns)
        corners = torch.stack([left + first_column, top + first_row, right + first_column, bottom + first_row], 1)
        return corners * (right > left)[:, None]

    def patch(self, padded: Float[Tensor, "h w"], cut: Cut) -> LogitPatch:
        """What `runs` needs of a mask, on the CPU. `cut` is that mask's at 0, not empty."""
        touched = cut.above[0] | cut.mixed[0]
        (top, bottom), (left, right) = (tuple(int(x) for x in extent_per_row(touched.any(axis)[None])) for axis in (1, 0))
        return LogitPatch(top, left, padded[top : bottom + 2, left : right + 2].cpu().clone())

    def window(self, rows: slice, columns: slice) -> MaskRasterizer:
        """Some of the cells; they belong to logits that begin with theirs and end two after theirs."""
        return MaskRasterizer(self.rows[rows], self.columns[columns])

    def runs(self, patch: LogitPatch, x: int, y: int, image_hw: tuple[int, int]) -> Int[np.ndarray, " R"]:
        """Lengths of the runs below and above 0 by turns, column by column (COCO's RLE), of a mask whose frame lies at (x, y)."""
        height, num_pixels = image_hw[0], image_hw[0] * image_hw[1]
        num_rows, num_columns = (side - 2 for side in patch.logits.shape)
        rows = slice(patch.row, patch.row + num_rows)
        step = max(1, PIXELS_AT_ONCE // (height * self.columns.weights.shape[1]))
        changes, last = [np.zeros(1, np.int64)], False
        for at in range(0, num_columns, step):
            band = self.window(rows, slice(patch.column + at, patch.column + min(at + step, num_columns)))
            canvas = band._columns_of_pixels(patch.logits[:, at : at + step + 2], y, height).numpy().reshape(-1)
            if not len(canvas):
                continue
            offset = (x + int(band.columns.start[0])) * height
            if canvas[0] != last:
                changes.append(np.array([offset]))
            changes.append(np.flatnonzero(canvas[1:] != canvas[:-1]) + (offset + 1))
            last = bool(canvas[-1])
            end = offset + len(canvas)
        if last and end < num_pixels:
            changes.append(np.array([end]))
        return np.diff(np.concatenate([*changes, [num_pixels]]))

    def _columns_of_pixels(self, padded: Float[Tensor, "h w"], y: int, height: int) -> Bool[Tensor, "columns rows"]:
        """The mask's own columns, each over the whole height of the image, in which the frame begins at row y."""
        cut = self.cut(padded[None], 0.0)
        own = cut.above[0].T.repeat_interleave(self.rows.length, 1).repeat_interleave(self.columns.length, 0)
        top, left = int(self.rows.start[0]), int(self.columns.start[0])
        canvas = own.new_zeros(len(own), height)
        canvas[:, y + top : y + top + own.shape[1]] = own
        for _, i, j, above in self._computed(padded[None], cut.mixed, 0.0):
            p, q, k = above.nonzero().unbind(1)
            canvas[self.columns.start[j[k]] - left + q, self.rows.start[i[k]] + y + p] = True
        return canvas

    def _computed(
        self, padded: Float[Tensor, "N h w"], cells: Bool[Tensor, "N I J"], threshold: float
    ) -> Iterator[tuple[Int[Tensor, " K"], Int[Tensor, " K"], Int[Tensor, " K"], Bool[Tensor, "P Q K"]]]:
        """For some cells at a time: mask, row and column, and which of their pixels are above the threshold."""
        height, width = padded.shape[1:]
        around = torch.tensor([[a * width + b] for a in range(3) for b in range(3)], device=padded.device)
        num_cells = max(1, VALUES_AT_ONCE // (self.rows.weights.shape[1] * self.columns.weights.shape[1]))
        for n, i, j in (part.unbind(1) for part in cells.nonzero().split(num_cells)):
            by_row, by_column = self.rows.weights[:, :, i], self.columns.weights[:, :, j]
            nine = padded.take((n * height + i) * width + j + around).unflatten(0, (3, 3))
            values = None
            for b in range(3):  # cells last: they are many, and what is done to all of them is done at once
                column = by_row[0] * nine[0, b]
                column.addcmul_(by_row[1], nine[1, b]).addcmul_(by_row[2], nine[2, b])
                values = column[:, None] * by_column[b] if values is None else values.addcmul_(column[:, None], by_column[b])
            assert values is not None
            yield n, i, j, values > threshold


def _in_threes(cells: Bool[Tensor, "N h w"], both: Callable[[Tensor, Tensor], Tensor]) -> Bool[Tensor, "N I J"]:
    """All, or any, of each 3 x 3 neighbours."""
    cells = both(both(cells[:, :-2], cells[:, 1:-1]), cells[:, 2:])
    return both(both(cells[:, :, :-2], cells[:, :, 1:-1]), cells[:, :, 2:])


def _filled(some: Bool[Tensor, "N I"]) -> Bool[Tensor, "N I"]:
    """From the first to the last that is set."""
    return (some.cumsum(1) > 0) & (some.flip(1).cumsum(1) > 0).flip(1)
