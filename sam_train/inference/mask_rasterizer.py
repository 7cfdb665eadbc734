"""Areas, stability scores, boxes and RLEs of masks at image resolution, from low-resolution logits without an upsampled copy.

Two bilinear steps bring logits to an image (geometry.Resize.logits_to_image). Together they make each pixel a weighted mean of
3 x 3 neighbouring logits at most, so it lies between the smallest and the largest of the nine. All pixels with the same
neighbours form a cell. Where the nine lie on one side of a threshold, so do all pixels of the cell; only the pixels of the
other, *mixed* cells along the mask's boundary are computed.

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
from sam_train.records import Rle
from sam_train.rle import run_lengths_to_rle

MIXED_PIXELS_PER_CHUNK = 1 << 17
"""Pixels of mixed cells that are computed together: half a megabyte, so that a CPU computes them within its caches."""
MASK_PIXELS_PER_CHUNK = 1 << 24
"""Pixels of a mask that are rasterized together for its RLE."""


@dataclass(frozen=True, slots=True)
class CellAxis:
    """The cells along one axis of the image."""

    start: Int[Tensor, " I"]
    """First pixel of each cell."""
    length: Int[Tensor, " I"]
    """Number of pixels of each cell; may be 0."""
    weights: Float[Tensor, "3 P I"]
    """Weights of the three neighbouring logits for each pixel; NaN past a cell's last pixel, so that it exceeds no threshold."""

    @staticmethod
    def from_taps(taps: InterpolationTaps, grid: int, device: torch.device) -> CellAxis:
        """Build the cells of an axis from the interpolation taps of its pixels."""
        cell = taps.first + 1  # the first cell lies before the centre of the grid's first logit
        length = np.bincount(cell, minlength=grid + 1)
        start = np.cumsum(length) - length
        weights = np.full((3, length.max(), grid + 1), np.nan, np.float32)
        weights[:, np.arange(len(cell)) - start[cell], cell] = taps.weights.T
        return CellAxis(*(torch.from_numpy(x).to(device) for x in (start, length, weights)))

    def __getitem__(self, cells: slice) -> CellAxis:
        """Return a range of the cells with their positions in the image."""
        return CellAxis(self.start[cells], self.length[cells], self.weights[:, :, cells])


@dataclass(frozen=True, slots=True)
class CellMasks:
    """Cells of N masks cut at a threshold."""

    threshold: float
    above: Bool[Tensor, "N I J"]
    """Cells all of whose pixels exceed the threshold."""
    mixed: Bool[Tensor, "N I J"]
    """Cells whose nine logits do not decide; their pixels must be computed."""

    def __getitem__(self, masks: Tensor) -> CellMasks:
        """Return the cells of some of the masks."""
        return CellMasks(self.threshold, self.above[masks], self.mixed[masks])


@dataclass(frozen=True, slots=True)
class LogitPatch:
    """The part of a mask's padded logits that determines the mask, and the row and column of its first cell."""

    row: int
    column: int
    logits: Float[Tensor, "_ _"]


@dataclass(frozen=True, slots=True)
class MaskRasterizer:
    """The cells of an image, or of a rectangular range of them. Create it with `for_image`."""

    rows: CellAxis
    columns: CellAxis

    @staticmethod
    @lru_cache(maxsize=64)
    def for_image(resize: Resize, grid: int, device: torch.device) -> MaskRasterizer:
        """Return the rasterizer of an image for logits on a grid of `grid` x `grid`."""
        rows, columns = (CellAxis.from_taps(taps, grid, device) for taps in resize.interpolation_taps(grid))
        return MaskRasterizer(rows, columns)

    @staticmethod
    def pad(logits: Float[Tensor, "N h w"]) -> Float[Tensor, "N h+3 w+3"]:
        """Repeat the edge logits, one before and two after, so that each cell has nine logits."""
        return F.pad(logits, (1, 2, 1, 2), mode="replicate")

    def cut(self, padded: Float[Tensor, "N h w"], threshold: float) -> CellMasks:
        """Classify each cell by its nine logits: all above the threshold, or mixed."""
        exceeds = padded > threshold
        above, touched = _reduce_3x3(exceeds, torch.bitwise_and), _reduce_3x3(exceeds, torch.bitwise_or)
        has_pixels = (self.rows.length > 0)[:, None] & (self.columns.length > 0)
        return CellMasks(threshold, above & has_pixels, (above ^ touched) & has_pixels)

    def count_pixels(self, cells: Bool[Tensor, "N I J"]) -> Int[Tensor, " N"]:
        """Return the number of pixels in the selected cells of each mask."""
        by_row = cells.float() @ self.columns.length.float()  # whole numbers below 2^24: exact
        return (by_row.long() * self.rows.length).sum(1)

    def areas(self, padded: Float[Tensor, "N h w"], cut: CellMasks) -> Int[Tensor, " N"]:
        """Return the number of pixels of each mask above the threshold."""
        areas = self.count_pixels(cut.above)
        for n, _, _, above in self._mixed_pixels(padded, cut.mixed, cut.threshold):
            areas.index_add_(0, n, above.sum((0, 1), dtype=torch.int32).long())
        return areas

    def stability_scores(
        self, padded: Float[Tensor, "N h w"], offset: float = 1.0, *, min_score: float = 0.0
    ) -> Float[Tensor, " N"]:
        """Return the IoU of each mask cut at +offset with the mask cut at -offset (paper, section B), 0 to 1.

        The score is 0 for an empty mask, and -1 where an upper bound shows that it is below `min_score`, which saves counting.
        """
        inner, outer = (self.cut(padded, threshold) for threshold in (offset, -offset))
        inner_area = self.count_pixels(inner.above) + self.count_pixels(inner.mixed)
        upper_bound = inner_area / self.count_pixels(outer.above).clamp(min=1)
        undecided = (upper_bound >= min_score).nonzero()[:, 0]
        inner_areas, outer_areas = (self.areas(padded[undecided], cut[undecided]) for cut in (inner, outer))
        scores = torch.full_like(upper_bound, -1)
        scores[undecided] = inner_areas / outer_areas.clamp(min=1)
        return scores

    def boxes(self, padded: Float[Tensor, "N h w"], cut: CellMasks) -> Int[Tensor, "N 4"]:
        """Return XYXY boxes around the pixels above the threshold, right and bottom exclusive; zeros for an empty mask."""
        rows, columns = cut.above.any(2), cut.above.any(1)
        # Mixed cells between rows and between columns that are decided cannot widen the box.
        enclosed = _fill_gaps(rows)[:, :, None] & _fill_gaps(columns)[:, None]
        pixel_rows, pixel_columns = (
            decided.repeat_interleave(axis.length, 1) for decided, axis in ((rows, self.rows), (columns, self.columns))
        )
        first_row, first_column = self.rows.start[0], self.columns.start[0]
        for n, i, j, above in self._mixed_pixels(padded, cut.mixed & ~enclosed, cut.threshold):
            p, k = above.any(1).nonzero().unbind(1)
            pixel_rows[n[k], self.rows.start[i[k]] + p - first_row] = True
            q, k = above.any(0).nonzero().unbind(1)
            pixel_columns[n[k], self.columns.start[j[k]] + q - first_column] = True
        (top, bottom), (left, right) = extent_per_row(pixel_rows), extent_per_row(pixel_columns)
        corners = torch.stack([left + first_column, top + first_row, right + first_column, bottom + first_row], 1)
        return corners * (right > left)[:, None]

    def crop_logits(self, padded: Float[Tensor, "h w"], cut: CellMasks) -> LogitPatch:
        """Return the logits that `encode_rle` needs, copied to the CPU. `cut` is the cut of this one mask at 0, not empty."""
        touched = cut.above[0] | cut.mixed[0]
        (top, bottom), (left, right) = (tuple(int(x) for x in extent_per_row(touched.any(axis)[None])) for axis in (1, 0))
        return LogitPatch(top, left, padded[top : bottom + 2, left : right + 2].cpu().clone())

    def cell_range(self, rows: slice, columns: slice) -> MaskRasterizer:
        """Return the rasterizer of a range of cells; its padded logits begin with the first cell and end two past the last."""
        return MaskRasterizer(self.rows[rows], self.columns[columns])

    def encode_rle(self, patch: LogitPatch, x: int, y: int, image_hw: tuple[int, int]) -> Rle:
        """Return the COCO RLE of a mask in an image of size `image_hw` in which the mask's frame lies at (x, y)."""
        return run_lengths_to_rle(self.run_lengths(patch, x, y, image_hw), *image_hw)

    def run_lengths(self, patch: LogitPatch, x: int, y: int, image_hw: tuple[int, int]) -> Int[np.ndarray, " R"]:
        """Return the alternating lengths of the runs below and above 0, column by column: COCO's uncompressed RLE counts."""
        height, num_pixels = image_hw[0], image_hw[0] * image_hw[1]
        num_rows, num_columns = (side - 2 for side in patch.logits.shape)
        rows = slice(patch.row, patch.row + num_rows)
        step = max(1, MASK_PIXELS_PER_CHUNK // (height * self.columns.weights.shape[1]))
        changes, last = [np.zeros(1, np.int64)], False
        for at in range(0, num_columns, step):
            band = self.cell_range(rows, slice(patch.column + at, patch.column + min(at + step, num_columns)))
            canvas = band._rasterize_columns(patch.logits[:, at : at + step + 2], y, height).numpy().reshape(-1)
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

    def _rasterize_columns(self, padded: Float[Tensor, "h w"], y: int, height: int) -> Bool[Tensor, "columns rows"]:
        """Return the pixel columns of these cells over the whole height of the image, in which the frame begins at row y."""
        cut = self.cut(padded[None], 0.0)
        decided = cut.above[0].T.repeat_interleave(self.rows.length, 1).repeat_interleave(self.columns.length, 0)
        top, left = int(self.rows.start[0]), int(self.columns.start[0])
        canvas = decided.new_zeros(len(decided), height)
        canvas[:, y + top : y + top + decided.shape[1]] = decided
        for _, i, j, above in self._mixed_pixels(padded[None], cut.mixed, 0.0):
            p, q, k = above.nonzero().unbind(1)
            canvas[self.columns.start[j[k]] - left + q, self.rows.start[i[k]] + y + p] = True
        return canvas

    def _mixed_pixels(
        self, padded: Float[Tensor, "N h w"], cells: Bool[Tensor, "N I J"], threshold: float
    ) -> Iterator[tuple[Int[Tensor, " K"], Int[Tensor, " K"], Int[Tensor, " K"], Bool[Tensor, "P Q K"]]]:
        """Yield chunks of the selected cells: mask, row and column of each cell, and which of its pixels exceed the threshold."""
        height, width = padded.shape[1:]
        around = torch.tensor([[a * width + b] for a in range(3) for b in range(3)], device=padded.device)
        num_cells = max(1, MIXED_PIXELS_PER_CHUNK // (self.rows.weights.shape[1] * self.columns.weights.shape[1]))
        for n, i, j in (part.unbind(1) for part in cells.nonzero().split(num_cells)):
            by_row, by_column = self.rows.weights[:, :, i], self.columns.weights[:, :, j]
            nine = padded.take((n * height + i) * width + j + around).unflatten(0, (3, 3))
            values = None
            for b in range(3):  # cells are the last axis: they are the most, and each operation covers all of them
                column = by_row[0] * nine[0, b]
                column.addcmul_(by_row[1], nine[1, b]).addcmul_(by_row[2], nine[2, b])
                values = column[:, None] * by_column[b] if values is None else values.addcmul_(column[:, None], by_column[b])
            assert values is not None
            yield n, i, j, values > threshold


def stability_scores(mask_logits: Float[Tensor, "N M h w"], resize: Resize, offset: float = 1.0) -> Float[Tensor, "N M"]:
    """Return the stability scores of masks of a whole image, at image resolution (`MaskRasterizer.stability_scores`).

    mask_logits: logits on the decoder's grid. resize: resizing of the image to the model frame.
    """
    logits = mask_logits.flatten(0, 1).float()
    cells = MaskRasterizer.for_image(resize, logits.shape[1], logits.device)
    return cells.stability_scores(cells.pad(logits), offset).reshape(mask_logits.shape[:2])


def _reduce_3x3(cells: Bool[Tensor, "N h w"], reduce: Callable[[Tensor, Tensor], Tensor]) -> Bool[Tensor, "N I J"]:
    """Reduce each 3 x 3 neighbourhood by a binary operation (and, or)."""
    cells = reduce(reduce(cells[:, :-2], cells[:, 1:-1]), cells[:, 2:])
    return reduce(reduce(cells[:, :, :-2], cells[:, :, 1:-1]), cells[:, :, 2:])


def _fill_gaps(flags: Bool[Tensor, "N I"]) -> Bool[Tensor, "N I"]:
    """Set all flags between the first and the last that are set."""
    return (flags.cumsum(1) > 0) & (flags.flip(1).cumsum(1) > 0).flip(1)
