"""Masks: to and from RLE, and what can be measured on them.

pycocotools is the reference for RLE. Box corners are inclusive-exclusive in pixels: a mask of one pixel at
(x, y) has the XYXY box [x, y, x + 1, y + 1] and the COCO XYWH box [x, y, 1, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from pycocotools import mask as coco_mask
from torch import Tensor

from sam_train.errors import ShardError
from sam_train.records import MAX_PIXELS, Rle


def encode_rle(mask: np.ndarray) -> Rle:
    """H x W bool to COCO compressed RLE with `counts` as str, as SA-1B's JSON has it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


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
    if rle_pixels(rle["counts"]) != height * width:
        raise ShardError("RLE runs do not add up to the image's pixels", shard=shard, key=key, field="segmentation.counts")
    return coco_mask.decode({"size": [height, width], "counts": rle["counts"].encode("ascii")}).astype(bool)


def rle_pixels(counts: str) -> int:
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
    _, height, width = masks.shape
    columns, rows = masks.any(1), masks.any(2)
    left, top = columns.int().argmax(1), rows.int().argmax(1)
    right, bottom = width - columns.flip(1).int().argmax(1), height - rows.flip(1).int().argmax(1)
    boxes = torch.stack([left, top, right, bottom], 1).float()
    return boxes * rows.any(1)[:, None]


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


def remove_small_regions(mask: np.ndarray, min_area: int) -> np.ndarray | None:
    """Fill holes and drop islands below `min_area` pixels (8-connected).

    As the paper has it (section B): when the largest island is itself too small the whole mask goes, and None
    comes back. The released code keeps the largest island instead.
    """
    filled = mask | _small_components(~mask, min_area)
    kept = filled & ~_small_components(filled, min_area)
    return kept if kept.any() else None


def _small_components(mask: np.ndarray, min_area: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False  # label 0 is everything outside the mask
    return small[labels]


def nms(boxes_xyxy: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], iou_threshold: float) -> Tensor:
    """Greedy box NMS: indices kept, best score first, of equal scores the earlier one."""
    if not len(boxes_xyxy):
        return torch.zeros(0, dtype=torch.long)
    # Ranks in place of scores: OpenCV drops every score that is not above zero.
    ranks = torch.empty(len(scores))
    ranks[scores.argsort(descending=True, stable=True).cpu()] = torch.arange(len(scores), 0, -1).float()
    sides = boxes_xyxy.clone()
    sides[:, 2:] -= sides[:, :2]
    kept = cv2.dnn.NMSBoxes(sides.tolist(), ranks.tolist(), score_threshold=0.0, nms_threshold=iou_threshold)
    return torch.as_tensor(np.asarray(kept).reshape(-1), dtype=torch.long)
