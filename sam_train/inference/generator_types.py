"""What makes masks without a person, and what it answers with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sam_train.inference.grids import Crop
from sam_train.inference.mask_filters import FilteredCandidate, Point
from sam_train.masks import decode_rle, remove_small_regions_rle, rle_area, rle_to_box_xywh
from sam_train.model import Sam
from sam_train.records import Rle


@runtime_checkable  # so that the type checks of the tests can ask
class MaskGenerator(Protocol):
    """Finds masks in a picture: AutomaticMaskGenerator by a grid, BoxMaskGenerator by boxes, TextMaskGenerator by words."""

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Masks of an H x W x 3 uint8 RGB image, best predicted IoU first, and candidates dropped by reason."""
        ...


@runtime_checkable
class EmbeddingMaskGenerator(MaskGenerator, Protocol):
    """A MaskGenerator that needs only the embedding of the whole image: BoxMaskGenerator, TextMaskGenerator."""

    def check_model(self, model: Sam) -> None:
        """Raise CheckpointError or ConfigError for a model that it cannot ask."""
        ...

    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """As `generate`, for an image that is encoded already."""
        ...


def generate_masks(
    maker: MaskGenerator, model: Sam, image: np.ndarray, image_embedding: Float[Tensor, "1 E h w"]
) -> tuple[list[GeneratedMask], Counter[str]]:
    """Run `maker` on an image whose embedding is known; only an EmbeddingMaskGenerator makes use of the embedding.

    Raises CheckpointError or ConfigError for a model that it cannot ask.
    """
    if not isinstance(maker, EmbeddingMaskGenerator):
        return maker.generate(model, image)
    maker.check_model(model)
    return maker.generate_from_embedding(model, image_embedding, (image.shape[0], image.shape[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedMask:
    """A mask in the image frame and how it came about."""

    rle: Rle
    area: int
    """In pixels."""
    box_xyxy: tuple[int, int, int, int]
    """In pixels, right and bottom exclusive."""
    predicted_iou: float
    stability_score: float
    prompt: tuple[Point, ...]
    """x, y and label (structures.PointLabel) of each point, image frame."""
    crop: Crop
    parent: int | None = None
    """Which of the masks that were found with it contains it, if that was asked for: the smallest that does."""
    name: str = ""
    """The word that it was asked by, if it was."""

    @property
    def mask(self) -> np.ndarray:
        """H x W bool, decoded anew each time."""
        height, width = self.rle["size"]
        return decode_rle(self.rle, height=height, width=width)

    @staticmethod
    def of(found: FilteredCandidate) -> GeneratedMask:
        """At the size of the image."""
        return GeneratedMask(
            rle=found.rle,
            area=rle_area(found.rle),
            box_xyxy=found.box_xyxy,
            predicted_iou=found.predicted_iou,
            stability_score=found.stability_score,
            prompt=found.prompt,
            crop=found.crop,
        )

    def cleaned(self, min_area: int, *, keep_largest: bool) -> GeneratedMask | None:
        """Without small regions (masks.remove_small_regions), itself if it has none, None if it has nothing else."""
        rle = remove_small_regions_rle(self.rle, min_area, keep_largest=keep_largest)
        if rle is None or rle == self.rle:
            return None if rle is None else self
        x, y, width, height = (int(side) for side in rle_to_box_xywh(rle))
        return replace(self, rle=rle, area=rle_area(rle), box_xyxy=(x, y, x + width, y + height))
