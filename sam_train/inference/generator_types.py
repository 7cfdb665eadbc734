"""Masks before they become records, and the protocols of the generators that return them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sam_train.inference.grids import Crop
from sam_train.model import Sam
from sam_train.records import Rle
from sam_train.rle import decode_rle, remove_small_regions_rle, rle_area, rle_to_box_xywh

Point = tuple[float, float, int]
"""x and y in pixels of the image frame, and the label (`structures.PointLabel`)."""


class MaskOrigin(Enum):
    """Way in which a mask was made."""

    GENERATED = auto()
    """Predicted by the model alone, from a grid, a proposer's boxes or text prompts."""
    CLICKED = auto()
    """Predicted by the model from the clicks and boxes of an annotator."""
    DRAWN = auto()
    """Drawn by an annotator with the brush."""


@dataclass(frozen=True, kw_only=True)  # no slots: cached properties need a __dict__
class GeneratedMask:
    """One mask of an image with its prompt and its scores, from the decoder until it is written as a `MaskRecord`.

    All coordinates are pixels of the image frame.
    """

    segmentation: Rle | Callable[[], Rle]
    """COCO compressed RLE of the mask, or a function that rasterizes it. Read `rle` instead, which calls the function once."""
    box_xyxy: tuple[int, int, int, int]
    """Left, top, right and bottom of the mask; right and bottom are exclusive."""
    predicted_iou: float
    """IoU with the object as the model estimates it, about 0 to 1; 1 for a drawn mask, which has no estimate."""
    stability_score: float
    """IoU of the mask cut at logits above and below 0, at image resolution (paper, section B), 0 to 1; 1 for a drawn mask."""
    crop: Crop
    """Crop of the image that the model encoded."""
    prompt_points: tuple[Point, ...] = ()
    """Points of the prompt. A box is two points, its corners."""
    origin: MaskOrigin = MaskOrigin.GENERATED
    seconds: float = 0.0
    """Time that an annotator spent on this mask."""
    parent: int | None = None
    """Index of the smallest mask of the same list that contains this one; None if there is none or it was not computed."""
    name: str = ""
    """Text prompt that the mask was generated from, else empty."""

    @staticmethod
    def from_rle(
        rle: Rle,
        *,
        predicted_iou: float,
        stability_score: float,
        prompt_points: tuple[Point, ...] = (),
        origin: MaskOrigin = MaskOrigin.GENERATED,
        seconds: float = 0.0,
        name: str = "",
    ) -> GeneratedMask:
        """Return the mask of an RLE that the model, or the annotator, made from the whole image."""
        height, width = rle["size"]
        return GeneratedMask(
            segmentation=rle,
            box_xyxy=_rle_box_xyxy(rle),
            predicted_iou=predicted_iou,
            stability_score=stability_score,
            crop=Crop.whole_image(height, width),
            prompt_points=prompt_points,
            origin=origin,
            seconds=seconds,
            name=name,
        )

    @cached_property
    def rle(self) -> Rle:
        """COCO compressed RLE of the mask; rasterized on first use."""
        return self.segmentation() if callable(self.segmentation) else self.segmentation

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return rle_area(self.rle)

    @property
    def mask(self) -> np.ndarray:
        """H x W bool. Decoded on each access: all decoded masks of a large image take gigabytes."""
        height, width = self.rle["size"]
        return decode_rle(self.rle, height=height, width=width)

    def rasterized(self) -> GeneratedMask:
        """Return the same mask with its RLE in place of the function, which frees the logits that the function holds."""
        return replace(self, segmentation=self.rle)

    def without_small_regions(self, min_area: int, *, keep_largest: bool = False) -> GeneratedMask | None:
        """Return the mask with small holes filled and small islands removed (`masks.remove_small_regions`).

        The mask itself is returned if it has no small region, None if it has no other.
        """
        rle = remove_small_regions_rle(self.rle, min_area, keep_largest=keep_largest)
        if rle is None or rle == self.rle:
            return None if rle is None else self
        return replace(self, segmentation=rle, box_xyxy=_rle_box_xyxy(rle))


@runtime_checkable  # for isinstance checks in the tests
class MaskGenerator(Protocol):
    """A method that segments an image without an annotator.

    Implementations: `GridMaskGenerator` (a grid of points), `BoxMaskGenerator` (boxes of a proposer),
    `TextMaskGenerator` (text prompts).
    """

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return the masks of an H x W x 3 uint8 RGB image, highest predicted IoU first, and counts of dropped candidates.

        The keys of the counts name the filter that dropped the candidates.
        """
        ...


@runtime_checkable
class EmbeddingMaskGenerator(MaskGenerator, Protocol):
    """A MaskGenerator that needs only the embedding of the whole image: BoxMaskGenerator, TextMaskGenerator."""

    def check_model(self, model: Sam) -> None:
        """Raise CheckpointError or ConfigError if the generator does not fit the model."""
        ...

    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return what `generate` returns, from the embedding of an image of height and width `image_hw`."""
        ...


def generate_masks(
    generator: MaskGenerator, model: Sam, image: np.ndarray, image_embedding: Float[Tensor, "1 E h w"]
) -> tuple[list[GeneratedMask], Counter[str]]:
    """Run `generator` on an image whose embedding is known; only an EmbeddingMaskGenerator uses the embedding.

    Raises CheckpointError or ConfigError if the generator does not fit the model.
    """
    if not isinstance(generator, EmbeddingMaskGenerator):
        return generator.generate(model, image)
    generator.check_model(model)
    return generator.generate_from_embedding(model, image_embedding, (image.shape[0], image.shape[1]))


def _rle_box_xyxy(rle: Rle) -> tuple[int, int, int, int]:
    x, y, width, height = (int(side) for side in rle_to_box_xywh(rle))
    return x, y, x + width, y + height
