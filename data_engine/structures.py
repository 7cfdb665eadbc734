"""Nouns of the engine: a picture to annotate, a mask proposed for it, and what a filter says of the mask."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from sam_train.records import ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImage:
    """One picture of a source, decoded. `image` is what `jpeg` decodes to, so masks drawn on it fit the shard."""

    key: str
    image_id: int
    image: np.ndarray
    """HWC uint8 RGB, upright."""
    jpeg: bytes
    """What goes into the shard."""
    origin: str
    """For people: the path relative to the source folder, or `shard.tar/member`."""
    record: ImageRecord | None = None
    """The masks it already has, when the source is a shard."""


class Origin(Enum):
    """How a mask came about."""

    GENERATED = auto()
    """By the model over a grid; nobody took part."""
    CLICKED = auto()
    """By the model, from an annotator's prompts."""
    DRAWN = auto()
    """By an annotator, with the brush."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A mask that somebody or something proposes, with where it comes from. Image frame throughout."""

    mask: np.ndarray
    """HW bool."""
    origin: Origin
    predicted_iou: float
    """The model's own estimate, about 0..1; 1 for a drawn mask, which no model estimated."""
    stability_score: float
    """0..1; 1 for a drawn mask."""
    crop_box: list[float]
    """XYWH in pixels: the window of the image that the model saw."""
    point_coords: list[list[float]]
    """[x, y] each: what SA-1B keeps of the prompt."""
    prompts: list[list[float]]
    """[x, y, label] each, labels as PointLabel."""
    seconds: float
    """Time spent on this mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a filter says of a candidate. `reason` is a short fixed name by which rejections are counted."""

    kept: bool
    reason: str = ""
