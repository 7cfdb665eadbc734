"""Points in regions and boxes around masks, as prompts. All coordinates are in the frame of the masks passed in."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.masks import masks_to_boxes_xyxy
from sam_train.prompts.rng import PromptRng, normal, uniform


def sample_uniform_points(region: Bool[Tensor, "N H W"], rng: PromptRng) -> Float[Tensor, "N 2"]:
    """Draw one pixel uniformly from each region, as (x, y). Raises ValueError for an empty region.

    Only N numbers are drawn, on the device of `rng`, so the result does not depend on the device of the masks.
    """
    counts = region.flatten(1).cumsum(1, dtype=torch.int32)
    total = counts[:, -1:]
    if not bool((total > 0).all()):
        raise ValueError("cannot draw a point from an empty region")
    fraction = uniform(rng, len(region), 1).to(region.device)
    rank = (fraction * total).to(torch.int32).clamp(max=total - 1) + 1
    return _to_xy(torch.searchsorted(counts, rank)[:, 0], region.shape[-1])


def central_points(region: Bool[Tensor, "N H W"]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Return the pixel (x, y) farthest from each region's boundary, and that distance in pixels (0 for an empty region).

    The edge of the frame counts as boundary (one pixel of padding), as in the paper's protocol (section D.1). If several
    pixels are equally far, the first one in row-major order is returned.
    """
    squared = [squared_distance_transform(mask) for mask in region.cpu().numpy()]
    index = torch.tensor([int(distances.argmax()) for distances in squared], dtype=torch.long, device=region.device)
    distances = torch.tensor([float(distances.max()) ** 0.5 for distances in squared], device=region.device)
    return _to_xy(index, region.shape[-1]), distances


def squared_distance_transform(region: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Return each pixel's squared distance to the nearest pixel outside the region or the frame; 0 outside the region.

    The squares are integers, so equal distances compare equal. The last bit of OpenCV's roots depends on the memory address of
    the array, so with them the farthest pixel would differ from process to process.
    """
    squared = np.zeros(region.shape, np.int32)
    left, top, columns, rows = cv2.boundingRect(region.view(np.uint8))
    if columns:
        window = slice(top, top + rows), slice(left, left + columns)
        padded = np.pad(region[window].view(np.uint8), 1)
        distances = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        squared[window] = np.rint(np.square(distances, dtype=np.float64))
    return squared


def noisy_boxes(masks: Bool[Tensor, "N H W"], *, std: float, max_px: float, rng: PromptRng) -> Float[Tensor, "N 4"]:
    """Return the XYXY boxes of the masks as prompts, with Gaussian noise on each coordinate (paper, section A).

    std: standard deviation of the noise, as a share of the box side.
    max_px: the noise is clipped to this absolute value. Corners are clipped to the pixels of the frame, and a box that the
        noise turns inside out stays without noise.

    Corners are the indices of the first and the last pixel, both inside the box: the prompt encoder adds half a pixel to a
    corner as to a click, and the released code computes its boxes in this way (`batched_mask_to_box`; `sample_box_points` of
    SAM 2's training). Exclusive corners, COCO's x + width, would be a pixel too far right and down for released weights.
    """
    boxes = masks_to_boxes_xyxy(masks)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes[:, 2:] -= 1
    noise = normal(rng, *boxes.shape).to(boxes.device)
    noisy = boxes + (noise * std * sides).clamp(-max_px, max_px)
    height, width = masks.shape[1:]
    limit = torch.tensor([width, height, width, height], device=boxes.device) - 1
    noisy = torch.minimum(noisy.clamp(min=0), limit)
    is_valid = (noisy[:, 2:] >= noisy[:, :2]).all(1, keepdim=True)
    return torch.where(is_valid, noisy, boxes)


def _to_xy(index: Tensor, width: int) -> Float[Tensor, "N 2"]:
    """Return the (x, y) of flat pixel indices."""
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], 1).float()
