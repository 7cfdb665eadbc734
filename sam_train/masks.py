"""Masks: RLE conversion, boxes, IoU, stability score, small-region removal, NMS and containment.

pycocotools is the reference for RLE. Box corners are inclusive-exclusive in pixels: a mask of one pixel at
(x, y) has the XYXY box [x, y, x + 1, y + 1] and the COCO XYWH box [x, y, 1, 1].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask
from torch import Tensor

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
    """Return the sum of the runs of a COCO compressed count string, -1 if it is malformed (maskApi.c, rleFrString)."""
    runs: list[int] = []
    position, length = 0, len(counts)
    while position < length:
        value, shift, more = 0, 0, True
        while more:
            if position >= length or shift > 30:
                return -1
            code = ord(counts[position]) - 48
            if not 0 <= code < 64:
                return -1
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            position += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return -1
        runs.append(value)
    return sum(runs)


def mask_to_box_xywh(mask: np.ndarray) -> list[float]:
    """Return the COCO box of an H x W bool mask; [0, 0, 0, 0] for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def masks_to_boxes_xyxy(masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """Return the XYXY boxes of masks, right and bottom exclusive; zeros for an empty mask."""
    (top, bottom), (left, right) = extent_per_row(masks.any(2)), extent_per_row(masks.any(1))
    return torch.stack([left, top, right, bottom], 1).float()


def extent_per_row(rows: Bool[Tensor, "N L"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return for each row the index of its first set element and one past that of its last; zeros for a row without any."""
    values = rows.int()
    ends = (rows.shape[1] - values.flip(1).argmax(1)) * rows.any(1)
    return values.argmax(1), ends


def mask_iou(a: Bool[Tensor, "... H W"], b: Bool[Tensor, "... H W"]) -> Float[Tensor, "..."]:
    """Return the intersection over union of broadcastable masks; 0 if both are empty."""
    intersection = (a & b).sum((-2, -1)).float()
    union = (a | b).sum((-2, -1)).float()
    return intersection / union.clamp(min=1)


def stability_score(mask_logits: Float[Tensor, "... h w"], offset: float = 1.0) -> Float[Tensor, "..."]:
    """Return the IoU of the masks thresholded at +offset and -offset (paper, section B); 0 for an empty mask."""
    inner = (mask_logits > offset).sum((-2, -1)).float()
    outer = (mask_logits > -offset).sum((-2, -1)).float()
    return inner / outer.clamp(min=1)


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


def nms(boxes_xyxy: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou_threshold: float) -> Tensor:
    """Return the indices that greedy box NMS keeps, best score first, the earlier of equal scores (torchvision.ops.nms)."""
    boxes = boxes_xyxy.cpu().float().numpy()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)

    def overlaps(best: int, others: np.ndarray) -> np.ndarray:
        sides = np.minimum(boxes[best, 2:], boxes[others, 2:]) - np.maximum(boxes[best, :2], boxes[others, :2])
        intersections = sides.clip(0).prod(1)
        # Boxes without area overlap nothing, not even each other.
        return intersections / np.maximum(areas[best] + areas[others] - intersections, np.finfo(np.float32).tiny)

    return _greedy_nms(scores, overlaps, iou_threshold)


def mask_nms(rles: Sequence[Rle], scores: Float[Tensor, " N"], iou_threshold: float) -> Tensor:
    """Return the indices that greedy NMS by mask IoU keeps, in the order of `nms`."""
    areas = np.array([rle_area(rle) for rle in rles], np.float64)
    boxes = np.array([rle_to_box_xywh(rle) for rle in rles]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]

    def overlaps(best: int, others: np.ndarray) -> np.ndarray:
        sides = np.minimum(boxes[best, 2:], boxes[others, 2:]) - np.maximum(boxes[best, :2], boxes[others, :2])
        max_intersections = np.minimum(sides.clip(0).prod(1), np.minimum(areas[best], areas[others]))
        # Compute the mask IoU only where the upper bound by boxes and areas exceeds the threshold.
        ious = max_intersections / np.maximum(areas[best] + areas[others] - max_intersections, 1)
        candidates = np.flatnonzero(ious > iou_threshold)
        if len(candidates):
            ious[candidates] = coco_mask.iou([rles[i] for i in others[candidates]], [rles[best]], [0])[:, 0]
        return ious

    return _greedy_nms(scores, overlaps, iou_threshold)


def _greedy_nms(scores: Float[Tensor, " N"], overlaps: Callable[[int, np.ndarray], np.ndarray], threshold: float) -> Tensor:
    """Repeatedly keep the best remaining index and remove those whose overlap with it exceeds the threshold."""
    remaining, kept = scores.argsort(descending=True, stable=True).cpu().numpy(), []
    while len(remaining):
        best, remaining = int(remaining[0]), remaining[1:]
        kept.append(best)
        remaining = remaining[overlaps(best, remaining).astype(np.float64) <= threshold]
    return torch.tensor(kept, dtype=torch.long)


def find_parent_masks(rles: Sequence[Rle], min_share: float) -> list[int | None]:
    """Return for each mask the index of its parent, or None.

    The parent is the smallest of the larger masks that contain at least `min_share` of the mask's area, so that whole, part and
    sub-part form a chain.
    """
    if not rles:
        return []
    areas = np.array([rle_area(rle) for rle in rles])
    # With iscrowd=1, pycocotools divides the intersection by the area of the first mask.
    contained_share = coco_mask.iou(list(rles), list(rles), [1] * len(rles))
    contains = (contained_share >= min_share) & (areas[None] > areas[:, None])
    smallest = np.where(contains, areas[None], np.iinfo(np.int64).max).argmin(1)
    return [int(j) if contains[i, j] else None for i, j in enumerate(smallest)]
