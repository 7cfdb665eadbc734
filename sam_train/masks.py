"""Masks as tensors: boxes, IoU, stability score, non-maximum suppression and containment.

Box corners are inclusive-exclusive in pixels: a mask of one pixel at
(x, y) has the XYXY box [x, y, x + 1, y + 1] and the COCO XYWH box [x, y, 1, 1].
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask
from torch import Tensor

from sam_train.records import Rle
from sam_train.rle import rle_area, rle_to_box_xywh

log = logging.getLogger(__name__)


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
    """Return the IoU of the masks thresholded at +offset and -offset (paper, section B); 0 for an empty mask.

    The paper measures it at image resolution. From logits on the decoder's grid, `inference.mask_rasterizer.stability_scores`
    computes it without upsampling them.
    """
    inner = (mask_logits > offset).sum((-2, -1)).float()
    outer = (mask_logits > -offset).sum((-2, -1)).float()
    return inner / outer.clamp(min=1)


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
