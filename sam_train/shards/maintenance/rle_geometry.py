"""Geometry of a mask from its RLE: the runs of its columns give area, box, centre and convex hull without its pixels.

COCO's RLE runs down the columns, so a run covers a part of a column, or of several columns. A mask of SA-1B has a few hundred
runs and millions of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MAX_PIXELS, Rle

_MAX_CODES = 7
"""Largest number of characters of one count: 35 bits, as in `sam_train.masks.rle_pixels` and pycocotools."""


@dataclass(frozen=True, slots=True, eq=False)
class ColumnRuns:
    """The foreground of a mask as S vertical runs, each within one column of the image frame, columns ascending; S may be 0.

    `columns`: x of each run. `tops` and `bottoms`: its first y, and the y after its last. All int64 of shape (S,).
    """

    columns: np.ndarray
    tops: np.ndarray
    bottoms: np.ndarray

    def area(self) -> int:
        """Return the number of pixels."""
        return int((self.bottoms - self.tops).sum())

    def box_xywh(self) -> list[float]:
        """Return the box [x, y, width, height] as `sam_train.rle.mask_to_box_xywh`; [0, 0, 0, 0] for an empty mask."""
        if not len(self.columns):
            return [0.0, 0.0, 0.0, 0.0]
        x, y = int(self.columns[0]), int(self.tops.min())
        return [float(x), float(y), float(self.columns[-1] + 1 - x), float(self.bottoms.max() - y)]

    def centre_xy(self) -> tuple[float, float]:
        """Return the centre of mass of a non-empty mask in pixels; that of a single pixel (x, y) is (x + 0.5, y + 0.5)."""
        heights = self.bottoms - self.tops
        x = float((heights * (self.columns + 0.5)).sum() / heights.sum())
        y = float((heights * (self.tops + self.bottoms)).sum() / (2 * heights.sum()))
        return x, y

    def hull_area(self) -> float:
        """Return the area of the convex hull of the pixels' corners, so that a rectangle is its own hull; 0 for an empty mask."""
        if not len(self.columns):
            return 0.0
        columns, first = np.unique(self.columns, return_index=True)
        tops, bottoms = np.minimum.reduceat(self.tops, first), np.maximum.reduceat(self.bottoms, first)
        corners = [(x, y) for x in (columns, columns + 1) for y in (tops, bottoms)]
        points = np.concatenate([np.stack(corner, 1) for corner in corners]).astype(np.int32)
        return float(cv2.contourArea(cv2.convexHull(points)))


def rle_to_column_runs(
    rle: Rle, *, height: int, width: int, shard: str = "", key: str = "", field: str = "segmentation"
) -> ColumnRuns:
    """Return the column runs of an RLE of an image of `height` x `width` pixels.

    Accepts exactly the RLEs that `sam_train.rle.decode_rle` accepts. Raises ShardError with a field below `field` for others.
    """
    size = list(rle.get("size", []))
    if size != [height, width] or min(height, width) < 1:
        message = f"RLE size {size} is not the image's [{height}, {width}]"
        raise ShardError(message, shard=shard, key=key, field=f"{field}.size")
    if height * width > MAX_PIXELS:
        message = f"{height} x {width} pixels exceed the limit of {MAX_PIXELS}"
        raise ShardError(message, shard=shard, key=key, field=f"{field}.size")
    runs = rle_runs(rle["counts"])
    if runs is None or int(runs.sum()) != height * width:
        covered = "is malformed" if runs is None else f"covers {int(runs.sum())} pixels"
        message = f"the RLE {covered}, the image has {height} x {width}"
        raise ShardError(message, shard=shard, key=key, field=f"{field}.counts")
    return _split_at_columns(runs, height)


def rle_runs(counts: str) -> np.ndarray | None:
    """Decode a COCO compressed count string to run lengths, int64, background first; None if it is malformed."""
    if not counts.isascii():
        return None
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    ends = np.flatnonzero(codes < 0x20)  # all other characters are continued by the next one
    if ((codes < 0) | (codes > 0x3F)).any() or not len(ends) or ends[-1] != len(codes) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CODES:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 0x1F) << shifts, starts)
    runs -= np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    # From the fourth on, a number is the difference to the one two before it.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs if runs.min() >= 0 else None


def _split_at_columns(runs: np.ndarray, height: int) -> ColumnRuns:
    edges = np.cumsum(runs)
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    starts, ends = starts[ends > starts], ends[ends > starts]
    first, last = starts // height, (ends - 1) // height
    spanned = last - first + 1
    before = np.cumsum(spanned) - spanned
    columns = np.repeat(first - before, spanned) + np.arange(int(spanned.sum()))
    tops = np.where(columns == np.repeat(first, spanned), np.repeat(starts % height, spanned), 0)
    bottoms = np.where(columns == np.repeat(last, spanned), np.repeat((ends - 1) % height + 1, spanned), height)
    return ColumnRuns(columns, tops, bottoms)
