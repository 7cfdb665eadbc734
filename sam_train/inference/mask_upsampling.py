"""Masks at the size of an image from low-resolution logits, in chunks, so that no full-size logits of all masks exist."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sam_train.geometry import Resize, pad_to_square
from sam_train.inference.mask_rasterizer import MaskRasterizer
from sam_train.records import Rle

PIXELS_PER_CHUNK = 1 << 24
"""Pixels of the masks that are upsampled together: 64 MB of logits."""
MASKS_PER_CHUNK = 64
"""Masks that are encoded as RLE together."""
MASK_PROMPT_LOGIT = 10.0
"""Logit of a pixel inside a mask prompt that is made from a binary mask; -10 is outside."""


def upsample_masks(mask_logits: Float[Tensor, "N M h w"], resize: Resize) -> Bool[Tensor, "N M H W"]:
    """Return the masks at the size of the image: where `resize.logits_to_image` exceeds 0.

    Beside the result it needs the memory of a few masks, not of all logits at the size of the image.
    """
    num, num_candidates = mask_logits.shape[:2]
    flat = mask_logits.flatten(0, 1)[:, None]
    masks = torch.empty(num * num_candidates, resize.height, resize.width, dtype=torch.bool, device=mask_logits.device)
    step = max(1, PIXELS_PER_CHUNK // max(resize.height * resize.width, resize.size**2))
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step].float()
        torch.gt(resize.logits_to_image(chunk)[:, 0], 0, out=masks[start : start + step])
    return masks.unflatten(0, (num, num_candidates))


def encode_rles(mask_logits: Float[Tensor, "N M h w"], resize: Resize) -> list[list[Rle]]:
    """Return the masks of `upsample_masks` as COCO RLEs, without an array of their size: N lists of M."""
    num_candidates = mask_logits.shape[1]
    logits = mask_logits.flatten(0, 1)
    cells, on_cpu = (MaskRasterizer.for_image(resize, logits.shape[1], d) for d in (logits.device, torch.device("cpu")))
    rles = []
    for chunk in logits.split(MASKS_PER_CHUNK) if len(logits) else ():
        padded = cells.pad(chunk.float())
        cut = cells.cut(padded, 0.0)
        for i in range(len(chunk)):
            patch = cells.crop_logits(padded[i], cut[torch.tensor([i], device=logits.device)])
            rles.append(on_cpu.encode_rle(patch, 0, 0, (resize.height, resize.width)))
    return [rles[i : i + num_candidates] for i in range(0, len(rles), num_candidates)]


def downsample_mask(mask: Bool[np.ndarray, "H W"], resize: Resize, grid: int) -> Float[np.ndarray, "1 g g"]:
    """Return a mask prompt, logits on a grid of `grid` x `grid`, from a binary mask of an image.

    The logit of a cell is proportional to the fraction of the cell that the mask covers: +10 for all, -10 for nothing and
    for the padding. Cut at 0, it is the mask to within a cell.
    """
    import cv2

    height, width = resize.scaled_hw
    scaled = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    frame = torch.from_numpy(pad_to_square(scaled, resize.size))
    coverage = F.interpolate(frame[None, None], (grid, grid), mode="area")[0]
    return ((2 * coverage - 1) * MASK_PROMPT_LOGIT).numpy()
