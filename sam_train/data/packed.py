"""A batch on its way: masks as the pixels of their boxes, painted into the model frame where they are needed.

Sixty-four masks at 1024 pixels are 64 MB, of which two are boxes. Loader processes hand on, and a GPU is sent, only these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from sam_train.structures import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """What `Batch` holds, its masks packed. Attributes of the same name are the same."""

    keys: tuple[str, ...]
    images: UInt8[Tensor, "B 3 H W"]
    sizes_hw: Int[Tensor, "B 2"]
    image_index: Int[Tensor, " N"]
    boxes: Int[Tensor, "N 4"]
    """First row, first column, rows, columns of each mask's patch in the model frame. On the CPU wherever the rest is: these
    are sizes, for which a GPU would have to be waited for."""
    pixels: Bool[Tensor, " P"]
    """The pixels of all patches, row by row, one patch after the other."""
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """With its tensors, but the boxes, on `device` (Lightning's transfer hook looks for this method)."""
        moved = {
            n: getattr(self, n).to(device, non_blocking=non_blocking) for n in ("images", "sizes_hw", "image_index", "pixels")
        }
        return replace(self, **moved)

    def unpack(self) -> Batch:
        """The batch with its masks painted, on the device where the pixels are."""
        return Batch(
            keys=self.keys,
            images=self.images,
            sizes_hw=self.sizes_hw,
            image_index=self.image_index,
            target_masks=self.target_masks,
            skipped=self.skipped,
        )

    @property
    def target_masks(self) -> Bool[Tensor, "N H W"]:
        """Painted anew each time that it is asked for."""
        shape = (len(self.boxes), *self.images.shape[2:])
        if self.pixels.device.type == "cpu":  # NumPy's zeros are pages that the system hands out when they are written
            masks = torch.from_numpy(np.zeros(shape, bool))
        else:
            masks = torch.zeros(shape, dtype=torch.bool, device=self.pixels.device)
        start, painted, pixels = 0, *((t.numpy() if t.device.type == "cpu" else t) for t in (masks, self.pixels))
        for mask, (top, left, rows, columns) in zip(painted, self.boxes.tolist(), strict=True):
            mask[top : top + rows, left : left + columns] = pixels[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
        return masks
