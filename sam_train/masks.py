"""Masks: to and from RLE, and what can be measured on them.

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
    """H x W bool to COCO compressed RLE with `counts` as str, as SA-1B's JSON has it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def run_lengths_to_rle(runs: Int[np.ndarray, " R"], height: int, width: int) -> Rle:
    """COCO compressed RLE from the lengths of its runs, the first one of background."""
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def rle_area(rle: Rle) -> int:
    """Pixels of the mask."""
    return int(coco_mask.area(rle))


def rle_to_box_xywh(rle: Rle) -> list[float]:
    """COCO box of the mask; [0, 0, 0, 0] when it is empty."""
    box: list[float] = coco_mask.toBbox(rle).tolist()
    return box


def decode_rle(rle: Rle, *, height: int, width: int, shard: str = "", key: str = "") -> np.ndarray:
    """COCO RLE to H x W bool. Raises ShardError when it is not an RLE of exactly that size, or of more than MAX_PIXELS."""
    size = list(rle.get("size", []))
    if size != [height, width] or min(height, width) < 1:
        message = f"RLE size {size} is not the image's [{height}, {width}]"
        raise ShardError(message, shard=shard, key=key, field="segmentation.size")
    if height * width > MAX_PIXELS:
        message = f"{height} x {width} pixels are more than the {MAX_PIXELS} that are decoded: scale or cut the image"
        raise ShardError(message, shard=shard, key=key, field="segmentation.size")
    # pycocotools trusts `counts`: runs that pass the end write outside the array, so they are summed first.
    if rle_total_pixels(rle["counts"]) != height * width:
        raise ShardError("RLE runs do not add up to the image's pixels", shard=shard, key=key, field="segmentation.counts")
    return coco_mask.decode({"size": [height, width], "counts": rle["counts"].encode("ascii")}).astype(bool)


def rle_total_pixels(counts: str) -> int:
    """Pixels that a COCO compressed count string covers, or -1 when it is malformed (maskApi.c, rleFrString)."""
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
    """COCO box of an H x W bool mask; [0, 0, 0, 0] when it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


def masks_to_boxes_xyxy(masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """XYXY boxes, right and bottom exclusive; zeros for an empty mask."""
    (top, bottom), (left, right) = extent_per_row(masks.any(2)), extent_per_row(masks.any(1))
    return torch.stack([left, top, right, bottom], 1).float()


def extent_per_row(some: Bool[Tensor, "N L"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """The first place of each row that is set, and the one after the last; zeros where none is."""
    places = some.int()
    ends = (some.shape[1] - places.flip(1).argmax(1)) * some.any(1)
    return places.argmax(1), ends


def mask_iou(a: Bool[Tensor, "... H W"], b: Bool[Tensor, "... H W"]) -> Float[Tensor, "..."]:
    """Intersection over union of broadcastable masks; 0 when both are empty."""
    intersection = (a & b).sum((-2, -1)).float()
    union = (a | b).sum((-2, -1)).float()
    return intersection / union.clamp(min=1)


def stability_score(mask_logits: Float[Tensor, "... h w"], offset: float = 1.0) -> Float[Tensor, "..."]:
    """IoU of the mask cut at +offset with the mask cut at -offset (paper, section B); 0 for an empty mask."""
    inner = (mask_logits > offset).sum((-2, -1)).float()
    outer = (mask_logits > -offset).sum((-2, -1)).float()
    return inner / outer.clamp(min=1)


def remove_small_regions(mask: np.ndarray, min_area: int, *, keep_largest: bool = False) -> np.ndarray | None:
    """Fill holes, then drop islands, below `min_area` pixels (8-connected).

    When the largest island is itself too small the whole mask goes (paper, section B), and None comes back. With
    `keep_largest`, that island stays, as in the released code; None is the answer to an empty mask.
    """
    filled = mask | _small_components(~mask, min_area)
    kept = filled & ~_small_components(filled, min_area)
    if kept.any():
        return kept
    return _largest_component(filled) if keep_largest and filled.any() else None


def remove_small_regions_rle(rle: Rle, min_area: int, *, keep_largest: bool = False) -> Rle | None:
    """`remove_small_regions` of an RLE, never decoded where rlemasklib is installed. An equal one if nothing is small."""
    library = _rlemasklib()
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
    small[0] = False  # label 0 is everything outside the mask
    return small[labels]


def _largest_component(mask: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


@cache
def _rlemasklib() -> Any:
    """The library, or None where it has no wheel: said once."""
    try:
        import rlemasklib
    except ImportError:
        log.warning("rlemasklib is not installed: small regions are looked for in whole masks, which takes time and memory")
        return None
    return rlemasklib


def nms(boxes_xyxy: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou_threshold: float) -> Tensor:
    """Greedy box NMS: indices kept, best score first, of equal scores the earlier one (torchvision.ops.nms)."""
    boxes = boxes_xyxy.cpu().float().numpy()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)

    def overlaps(best: int, others: np.ndarray) -> np.ndarray:
        sides = np.minimum(boxes[best, 2:], boxes[others, 2:]) - np.maximum(boxes[best, :2], boxes[others, :2])
        both = sides.clip(0).prod(1)
        # Boxes without an area overlap nothing, not even each other.
        return both / np.maximum(areas[best] + areas[others] - both, np.finfo(np.float32).tiny)

    return _greedy(scores, overlaps, iou_threshold)


def mask_nms(rles: Sequence[Rle], scores: Float[Tensor, " N"], iou_threshold: float) -> Tensor:
    """The same with the IoU of the masks in place of their boxes'."""
    areas = np.array([rle_area(rle) for rle in rles], np.float64)
    boxes = np.array([rle_to_box_xywh(rle) for rle in rles]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]

    def overlaps(best: int, others: np.ndarray) -> np.ndarray:
        sides = np.minimum(boxes[best, 2:], boxes[others, 2:]) - np.maximum(boxes[best, :2], boxes[others, :2])
        most = np.minimum(sides.clip(0).prod(1), np.minimum(areas[best], areas[others]))
        # Masks that cannot overlap so much need not be looked at.
        ious = most / np.maximum(areas[best] + areas[others] - most, 1)
        near = np.flatnonzero(ious > iou_threshold)
        if len(near):
            ious[near] = coco_mask.iou([rles[i] for i in others[near]], [rles[best]], [0])[:, 0]
        return ious

    return _greedy(scores, overlaps, iou_threshold)


def _greedy(scores: Float[Tensor, " N"], overlaps: Callable[[int, np.ndarray], np.ndarray], threshold: float) -> Tensor:
    """Take the best of what is left, drop what overlaps it by more than the threshold, and so on."""
    left, kept = scores.argsort(descending=True, stable=True).cpu().numpy(), []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[overlaps(best, left).astype(np.float64) <= threshold]
    return torch.tensor(kept, dtype=torch.long)


def find_parent_masks(rles: Sequence[Rle], share: float) -> list[int | None]:
    """For each mask the smallest of the larger ones that `share` of it lies in, or None: whole, part and sub-part are a chain."""
    if not rles:
        return []
    areas = np.array([rle_area(rle) for rle in rles])
    inside = coco_mask.iou(list(rles), list(rles), [1] * len(rles))  # of crowds: intersection over the first one's area
    holds = (inside >= share) & (areas[None] > areas[:, None])
    smallest = np.where(holds, areas[None], np.iinfo(np.int64).max).argmin(1)
    return [int(j) if holds[i, j] else None for i, j in enumerate(smallest)]
