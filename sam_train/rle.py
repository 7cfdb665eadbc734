"""Masks as COCO run-length encodings (RLE) and NumPy arrays: conversion, area, box, removal of small regions.

pycocotools is the reference. Boxes are COCO's XYWH in pixels: a mask of one pixel at (x, y) has the box [x, y, 1, 1]. Nothing
here imports torch, so that commands on shards start fast.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int
from pycocotools import mask as coco_mask

from sam_train.errors import ShardError
from sam_train.records import MAX_PIXELS, Rle

log = logging.getLogger(__name__)


def encode_rle(mask: np.ndarray) -> Rle:
    """Encode an H x W bool mask as COCO compressed RLE with `counts` as str, as in SA-1B's JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def run_lengths_to_rle(runs: Int[np.ndarray, " R"], height: int, width: int) -> Rle:
    """Encode run lengths (column-major, the first run is background) as COCO compressed RLE."""
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def rle_area(rle: Rle) -> int:
    """Return the number of mask pixels."""
    return int(coco_mask.area(rle))


def rle_to_box_xywh(rle: Rle) -> list[float]:
    """Return the COCO box of the mask; [0, 0, 0, 0] for an empty mask."""
    box: list[float] = coco_mask.toBbox(rle).tolist()
    return box


def decode_rle(rle: Rle, *, height: int, width: int, shard: str = "", key: str = "") -> np.ndarray:
    """Decode COCO RLE to an H x W bool mask. Raises ShardError if it is not a valid RLE of that size, or above MAX_PIXELS."""
    size = list(rle.get("size", []))
    if size != [height, width] or min(height, width) < 1:
        message = f"RLE size {size} is not the image's [{height}, {width}]"
        raise ShardError(message, shard=shard, key=key, field="segmentation.size")
    if height * width > MAX_PIXELS:
        message = f"{height} x {width} pixels exceed the limit of {MAX_PIXELS}: downscale or crop the image"
        raise ShardError(message, shard=shard, key=key, field="segmentation.size")
    # pycocotools does not validate `counts`: runs beyond the end write outside the array, so sum them first.
    if rle_total_pixels(rle["counts"]) != height * width:
        raise ShardError("RLE runs do not add up to the image's pixels", shard=shard, key=key, field="segmentation.counts")
    return coco_mask.decode({"size": [height, width], "counts": rle["counts"].encode("ascii")}).astype(bool)


def rle_total_pixels(counts: str) -> int:
    """Return the sum of the runs of a COCO compressed count string, -1 if it is malformed."""
    runs = rle_run_lengths(counts)
    return -1 if runs is None else sum(runs)


def rle_run_lengths(counts: str) -> list[int] | None:
    """Return the runs of a COCO compressed count string, None if it is malformed (maskApi.c, rleFrString)."""
    runs: list[int] = []
    position, length = 0, len(counts)
    while position < length:
        value, shift, more = 0, 0, True
        while more:
            if position >= length or shift > 30:
                return None
            code = ord(counts[position]) - 48
            if not 0 <= code < 64:
                return None
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            position += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
    return runs


def mask_to_box_xywh(mask: np.ndarray) -> list[float]:
    """Return the COCO box of an H x W bool mask; [0, 0, 0, 0] for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def remove_small_regions(mask: np.ndarray, min_area: int, *, keep_largest: bool = False) -> np.ndarray | None:
    """Fill holes, then remove connected components, below `min_area` pixels (8-connected).

    Return None if the mask is empty or even its largest component is too small (paper, section B). With `keep_largest`, that
    component is kept, as in the released code, and None is returned for an empty mask only.
    """
    filled = mask | _small_components(~mask, min_area)
    kept = filled & ~_small_components(filled, min_area)
    if kept.any():
        return kept
    return _largest_component(filled) if keep_largest and filled.any() else None


def remove_small_regions_rle(rle: Rle, min_area: int, *, keep_largest: bool = False) -> Rle | None:
    """Apply `remove_small_regions` to an RLE, without decoding it if rlemasklib is installed."""
    library = rlemasklib_or_none()
    if library is None:
        height, width = rle["size"]
        kept = remove_small_regions(decode_rle(rle, height=height, width=width), min_area, keep_largest=keep_largest)
        return None if kept is None else encode_rle(kept)
    mask = library.RLEMask.from_dict({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    filled = mask.fill_small_holes(min_area, connectivity=8)
    kept = filled.remove_small_components(min_area, connectivity=8)
    if not kept.any() and keep_largest and filled.any():
        kept = filled.largest_connected_component(connectivity=8)
    if not kept.any():
        return None
    return {"size": list(rle["size"]), "counts": kept.to_dict()["counts"].decode("ascii")}


def _small_components(mask: np.ndarray, min_area: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False  # label 0 is the background
    return small[labels]


def _largest_component(mask: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


@cache
def rlemasklib_or_none() -> Any:
    """Return the module rlemasklib, or None with one warning if it is not installed."""
    try:
        import rlemasklib
    except ImportError:
        log.warning("rlemasklib is not installed: pycocotools decodes every mask instead, which takes more time and memory")
        return None
    return rlemasklib
