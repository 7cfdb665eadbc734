"""A batch on its way: pictures without their padding, masks as the pixels of their boxes.

Sixty-four masks at 1024 pixels are 64 MB, of which two are boxes. Loader processes hand on, and a GPU is sent, only these;
the frames are drawn where they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from sam_train.structures import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """What `Batch` holds, its pictures and masks packed. Attributes of the same name are the same."""

    keys: tuple[str, ...]
    image_size: int
    """S, the side of the model frame."""
    sizes_hw: Int[Tensor, "B 2"]
    """This and `boxes` are on the CPU wherever the rest is: they are sizes, for which a GPU would have to be waited for."""
    pictures: UInt8[Tensor, "Q 3"]
    """The pixels of all pictures, row by row, one picture after the other."""
    image_index: Int[Tensor, " N"]
    boxes: Int[Tensor, "N 4"]
    """First row, first column, rows, columns of each mask's patch in the model frame."""
    pixels: Bool[Tensor, " P"]
    """The pixels of all patches, row by row, one patch after the other."""
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    text_embeddings: Float[Tensor, "N E"] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """With its pixels on `device` (Lightning's transfer hook looks for this method)."""
        there = [n for n in ("pictures", "image_index", "pixels", "text_embeddings") if getattr(self, n) is not None]
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in there})

    def unpack(self) -> Batch:
        """The batch with its frames drawn, on the device where the pixels are."""
        return Batch(
            keys=self.keys,
            images=self.images,
            sizes_hw=self.sizes_hw.to(self.pictures.device),
            image_index=self.image_index,
            target_masks=self.target_masks,
            skipped=self.skipped,
            names=self.names,
            text_embeddings=self.text_embeddings,
        )

    @property
    def images(self) -> UInt8[Tensor, "B 3 S S"]:
        """Drawn anew each time that they are asked for."""
        images, start = self._frames(len(self.keys), 3, dtype=torch.uint8), 0
        for planes, (height, width) in zip(images, self.sizes_hw.tolist(), strict=True):
            picture = self.pictures[start : start + height * width].reshape(height, width, 3)
            if picture.device.type == "cpu":  # ten times as fast as torch's copy
                cv2.split(picture.numpy(), [plane[:height, :width].numpy() for plane in planes])
            else:
                planes[:, :height, :width] = picture.permute(2, 0, 1)
            start += height * width
        return images

    @property
    def target_masks(self) -> Bool[Tensor, "N S S"]:
        """Painted anew each time that they are asked for."""
        masks, start = self._frames(len(self.boxes), dtype=torch.bool), 0
        painted, pixels = ((t.numpy() if t.device.type == "cpu" else t) for t in (masks, self.pixels))
        for mask, (top, left, rows, columns) in zip(painted, self.boxes.tolist(), strict=True):
            mask[top : top + rows, left : left + columns] = pixels[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
        return masks

    def _frames(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros of shape x S x S."""
        full, device = (*shape, self.image_size, self.image_size), self.pictures.device
        if device.type == "cpu":  # NumPy's zeros are pages that the system hands out when they are written
            return torch.from_numpy(np.zeros(full, np.uint8)).view(dtype)
        return torch.zeros(full, dtype=dtype, device=device)
