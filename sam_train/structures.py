"""Data structures of a training or inference step: prompts, batches and predictions.

Dimensions: B images in a batch · N prompts, one target mask each · P points in a prompt · E dimensions of a text embedding ·
M candidate masks (3 when the prompt is ambiguous, else 1) · H W model frame · h w the decoder's output grid (four cells for
each image token along a side: a quarter of H W with 16-pixel patches).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class PointLabel(IntEnum):
    """Point labels, with the numbers of released SAM."""

    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """N prompts over any number of images. A box is two labelled points; a mask prompt is the previous prediction.

    A prompt without a box carries one `PADDING` point, as in the released prompt encoder, so a click and a
    box have equally many points and keep that as points are added.
    """

    image_index: Int[Tensor, " N"]
    """Index in the batch of the image of each prompt."""
    points_xy: Float[Tensor, "N P 2"]
    """Points in the model frame, in pixels; a pixel's point is its integer (column, row)."""
    point_labels: Int[Tensor, "N P"]
    """A `PointLabel` for each point."""
    mask_logits: Float[Tensor, "N 1 h w"] | None = None
    """Mask logits of the previous prediction; None if no prompt has a mask."""
    text_embeddings: Float[Tensor, "N E"] | None = None
    """Text embeddings of unit norm (see `sam_train.text`), alone or beside points; None if no prompt has a text."""

    @staticmethod
    def from_points(
        image_index: Int[Tensor, " N"], points_xy: Float[Tensor, "N P 2"], point_labels: Int[Tensor, "N P"]
    ) -> Prompts:
        """Return click prompts, with the padding point of the released encoder appended."""
        padding_xy = points_xy.new_zeros(len(points_xy), 1, 2)
        padding = point_labels.new_full((len(points_xy), 1), PointLabel.PADDING)
        return Prompts(
            image_index=image_index,
            points_xy=torch.cat([points_xy, padding_xy], 1),
            point_labels=torch.cat([point_labels, padding], 1),
        )

    @staticmethod
    def from_boxes(image_index: Int[Tensor, " N"], boxes_xyxy: Float[Tensor, "N 4"]) -> Prompts:
        """Return box prompts, the corners as two labelled points: the first and the last pixel inside, as `noisy_boxes` does."""
        labels = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=boxes_xyxy.device)
        return Prompts(
            image_index=image_index,
            points_xy=boxes_xyxy.reshape(-1, 2, 2),
            point_labels=labels.expand(len(boxes_xyxy), 2),
        )

    @staticmethod
    def from_text(image_index: Int[Tensor, " N"], text_embeddings: Float[Tensor, "N E"]) -> Prompts:
        """Return text prompts without points, except for the padding point."""
        num, device = len(text_embeddings), text_embeddings.device
        no_points = torch.zeros(num, 0, 2, device=device), torch.zeros(num, 0, dtype=torch.long, device=device)
        return replace(Prompts.from_points(image_index, *no_points), text_embeddings=text_embeddings)

    def with_point(
        self, points_xy: Float[Tensor, "N 2"], point_labels: Int[Tensor, " N"], mask_logits: Float[Tensor, "N 1 h w"] | None
    ) -> Prompts:
        """Return the prompts with one more point each and the previous prediction as mask prompt."""
        return replace(
            self,
            points_xy=torch.cat([self.points_xy, points_xy[:, None]], 1),
            point_labels=torch.cat([self.point_labels, point_labels[:, None]], 1),
            mask_logits=mask_logits,
        )

    def with_mask(self, mask_logits: Float[Tensor, "N 1 h w"]) -> Prompts:
        """Return the prompts with the previous prediction as mask prompt and no new point."""
        return replace(self, mask_logits=mask_logits)

    @staticmethod
    def concatenate(parts: Sequence[Prompts]) -> Prompts:
        """Return the rows of all parts, which have the same number of points and the same optional tensors."""
        tensors: dict[str, Tensor | None] = {}
        for name in ("image_index", "points_xy", "point_labels", "mask_logits", "text_embeddings"):
            values = [getattr(part, name) for part in parts]
            tensors[name] = None if values[0] is None else torch.cat(values)
        return Prompts(**tensors)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Prompts:
        """Return the prompts with their tensors on `device`."""
        return Prompts(
            image_index=self.image_index.to(device),
            points_xy=self.points_xy.to(device),
            point_labels=self.point_labels.to(device),
            mask_logits=None if self.mask_logits is None else self.mask_logits.to(device),
            text_embeddings=None if self.text_embeddings is None else self.text_embeddings.to(device),
        )

    def __len__(self) -> int:
        return len(self.image_index)

    def __getitem__(self, index: Tensor | slice) -> Prompts:
        """Return the prompts that a slice, an index tensor or a boolean tensor selects."""
        return Prompts(
            image_index=self.image_index[index],
            points_xy=self.points_xy[index],
            point_labels=self.point_labels[index],
            mask_logits=None if self.mask_logits is None else self.mask_logits[index],
            text_embeddings=None if self.text_embeddings is None else self.text_embeddings[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B images with N target masks, packed: `image_index` gives the image of each mask, and no mask is padding."""

    keys: tuple[str, ...]
    """Sample key of each image."""
    images: UInt8[Tensor, "B 3 H W"]
    """RGB pixels in the model frame, 0 to 255."""
    sizes_hw: Int[Tensor, "B 2"]
    """Height and width of the image inside the model frame; the rest is padding."""
    image_index: Int[Tensor, " N"]
    """Index in the batch of the image of each mask."""
    target_masks: Bool[Tensor, "N H W"]
    """Target masks in the model frame."""
    skipped: tuple[str, ...] = ()
    """Reason of each sample that was skipped since the previous batch."""
    names: tuple[str, ...] | None = None
    """Class name or caption of each mask, empty where unknown; None unless the loader reads them (`data.load_names=true`)."""
    text_embeddings: Float[Tensor, "N E"] | None = None
    """Text embedding of each mask's name, unit norm; None if the run has no `text`."""
    sources: tuple[Any, ...] = ()
    """Number and stored sample (`shards.Sample`) of each readable image, in validation; empty in training."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Number of masks of the images that are not in the batch, by the option of `data` that dropped them."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`. Lightning's transfer hook calls this method."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            sizes_hw=self.sizes_hw.to(device, non_blocking=non_blocking),
            image_index=self.image_index.to(device, non_blocking=non_blocking),
            target_masks=self.target_masks.to(device, non_blocking=non_blocking),
            text_embeddings=None if self.text_embeddings is None else self.text_embeddings.to(device, non_blocking=non_blocking),
        )

    def split(self, num_images: int) -> list[Batch]:
        """Split into batches of `num_images` images, the last perhaps smaller, each with its masks.

        `skipped` and `dropped` stay with the first batch.
        """
        if num_images >= len(self.keys):
            return [self]
        parts = []
        for start in range(0, len(self.keys), num_images):
            images = slice(start, start + num_images)
            masks = (self.image_index >= start) & (self.image_index < start + num_images)
            parts.append(
                Batch(
                    keys=self.keys[images],
                    images=self.images[images],
                    sizes_hw=self.sizes_hw[images],
                    image_index=self.image_index[masks] - start,
                    target_masks=self.target_masks[masks],
                    skipped=() if start else self.skipped,
                    dropped={} if start else self.dropped,
                    names=self.names and tuple(self.names[i] for i in masks.nonzero()[:, 0].tolist()),
                    text_embeddings=None if self.text_embeddings is None else self.text_embeddings[masks],
                )
            )
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Output of the mask decoder: M candidate masks for each of N prompts."""

    mask_logits: Float[Tensor, "N M h w"]
    """Logits on the decoder's grid; the mask is where they exceed 0."""
    iou_scores: Float[Tensor, "N M"]
    """IoU of each mask as the model estimates it."""

    def detach(self) -> Prediction:
        """Return the same values detached from the autograd graph."""
        return Prediction(mask_logits=self.mask_logits.detach(), iou_scores=self.iou_scores.detach())

    def best(self) -> Prediction:
        """Return the candidate with the highest estimated IoU for each prompt, M = 1."""
        if self.iou_scores.shape[1] == 1:
            return self
        best = self.iou_scores.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        return Prediction(mask_logits=self.mask_logits[rows, best][:, None], iou_scores=self.iou_scores[rows, best][:, None])
