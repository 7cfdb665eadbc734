"""The batch between loader and device: images without padding, and masks cropped to their boxes.

Sixty-four masks at 1024 pixels are 64 MB, of which the boxes are two. Only these pass from the loader processes to the GPU;
the full frames are written where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from sam_train.structures import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """The content of a `Batch`, with packed images and masks. Attributes of the same name have the same meaning."""

    keys: tuple[str, ...]
    image_size: int
    """Side S of the model frame."""
    sizes_hw: Int[Tensor, "B 2"]
    """Height and width of each image without padding. Like `mask_boxes`, always on the CPU: reading them from a GPU would
    synchronise with it."""
    image_pixels: UInt8[Tensor, "Q 3"]
    """The pixels of all images in row-major order, one image after the other."""
    image_index: Int[Tensor, " N"]
    mask_boxes: Int[Tensor, "N 4"]
    """First row, first column, number of rows and columns of each mask crop in the model frame."""
    mask_pixels: Bool[Tensor, " P"]
    """The pixels of all mask crops in row-major order, one crop after the other."""
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    text_embeddings: Float[Tensor, "N E"] | None = None
    sources: tuple[Any, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """Return the batch with its pixels on `device` (Lightning's transfer hook calls a method of this name)."""
        names = ("image_pixels", "image_index", "mask_pixels", "text_embeddings")
        tensors = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})

    def unpack(self) -> Batch:
        """Return the batch with full frames, on the device of the pixels."""
        return Batch(
            keys=self.keys,
            images=self.images,
            sizes_hw=self.sizes_hw.to(self.image_pixels.device),
            image_index=self.image_index,
            target_masks=self.target_masks,
            skipped=self.skipped,
            names=self.names,
            text_embeddings=self.text_embeddings,
            sources=self.sources,
            dropped=self.dropped,
        )

    @property
    def images(self) -> UInt8[Tensor, "B 3 S S"]:
        """The images padded to the model frame. Each access allocates a new tensor."""
        images, start = self._zeros(len(self.keys), 3, dtype=torch.uint8), 0
        for planes, (height, width) in zip(images, self.sizes_hw.tolist(), strict=True):
            image = self.image_pixels[start : start + height * width].reshape(height, width, 3)
            if image.device.type == "cpu":  # ten times as fast as torch's copy
                cv2.split(image.numpy(), [plane[:height, :width].numpy() for plane in planes])
            else:
                planes[:, :height, :width] = image.permute(2, 0, 1)
            start += height * width
        return images

    @property
    def target_masks(self) -> Bool[Tensor, "N S S"]:
        """The masks in the model frame. Each access allocates a new tensor."""
        masks, start = self._zeros(len(self.mask_boxes), dtype=torch.bool), 0
        frames, pixels = ((t.numpy() if t.device.type == "cpu" else t) for t in (masks, self.mask_pixels))
        for frame, (top, left, rows, columns) in zip(frames, self.mask_boxes.tolist(), strict=True):
            frame[top : top + rows, left : left + columns] = pixels[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
        return masks

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return zeros of shape x S x S."""
        full, device = (*shape, self.image_size, self.image_size), self.image_pixels.device
        if device.type == "cpu":  # the system allocates the pages of NumPy's zeros when they are first written
            return torch.from_numpy(np.zeros(full, np.uint8)).view(dtype)
        return torch.zeros(full, dtype=dtype, device=device)
