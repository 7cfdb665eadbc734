"""Where an annotator would click: points from regions, boxes from masks. Frame: that of the masks given."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.masks import masks_to_boxes_xyxy
from sam_train.prompts.rng import PromptRng, normal, uniform


def sample_uniform_points(region: Bool[Tensor, "N H W"], generator: PromptRng) -> Float[Tensor, "N 2"]:
    """One pixel drawn uniformly from each region, as x, y. Raises ValueError for an empty region.

    Only N numbers are drawn, on the generator's device, so the draw is the same wherever the masks are.
    """
    counts = region.flatten(1).cumsum(1, dtype=torch.int32)
    total = counts[:, -1:]
    if not bool((total > 0).all()):
        raise ValueError("cannot draw a point from an empty region")
    share = uniform(generator, len(region), 1).to(region.device)
    rank = (share * total).to(torch.int32).clamp(max=total - 1) + 1
    return _to_xy(torch.searchsorted(counts, rank)[:, 0], region.shape[-1])


def central_points(region: Bool[Tensor, "N H W"]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """The pixel farthest from each region's boundary, and that distance in pixels (0 for an empty region).

    The frame's edge counts as boundary (one pixel of padding), as in the paper's protocol (section D.1). Of several pixels
    that are equally far it is the first, row by row.
    """
    squared = [squared_distance_transform(mask) for mask in region.cpu().numpy()]
    index = torch.tensor([int(depths.argmax()) for depths in squared], dtype=torch.long, device=region.device)
    distances = torch.tensor([float(depths.max()) ** 0.5 for depths in squared], device=region.device)
    return _to_xy(index, region.shape[-1]), distances


def squared_distance_transform(region: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Each pixel's squared distance from the nearest pixel that is not of the region or lies beyond the frame; 0 outside.

    Squared, these are integers, and pixels equally far are equal: the last bit of OpenCV's roots depends on where the memory
    lies, so that the farthest pixel would be another one from process to process.
    """
    depths = np.zeros(region.shape, np.int32)
    left, top, columns, rows = cv2.boundingRect(region.view(np.uint8))
    if columns:
        window = slice(top, top + rows), slice(left, left + columns)
        padded = np.pad(region[window].view(np.uint8), 1)
        distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        depths[window] = np.rint(np.square(distances, dtype=np.float64))
    return depths


def noisy_boxes(masks: Bool[Tensor, "N H W"], *, std: float, max_px: float, generator: PromptRng) -> Float[Tensor, "N 4"]:
    """XYXY box prompts of the masks with Gaussian noise on each coordinate (paper, section A).

    Corners are the indexes of the first and the last pixel, both inside the box: the prompt encoder adds half a pixel to a
    corner as to a click, and the released code makes its boxes so (`batched_mask_to_box`; `sample_box_points` of SAM 2's
    training). Exclusive corners, COCO's x + width, would be a pixel too far right and down for released weights.

    `std` is a share of the box side, the noise is clipped at `max_px`. A box that the noise turns inside out
    stays clean. Corners are kept on pixels of the frame.
    """
    boxes = masks_to_boxes_xyxy(masks)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes[:, 2:] -= 1
    noise = normal(generator, *boxes.shape).to(boxes.device)
    noisy = boxes + (noise * std * sides).clamp(-max_px, max_px)
    height, width = masks.shape[1:]
    limit = torch.tensor([width, height, width, height], device=boxes.device) - 1
    noisy = torch.minimum(noisy.clamp(min=0), limit)
    valid = (noisy[:, 2:] >= noisy[:, :2]).all(1, keepdim=True)
    return torch.where(valid, noisy, boxes)


def _to_xy(index: Tensor, width: int) -> Float[Tensor, "N 2"]:
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], 1).float()
