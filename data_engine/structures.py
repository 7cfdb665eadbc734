"""Nouns of the engine: a picture to annotate, what was covered in it, a mask proposed for it, what a filter says of the mask."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from sam_train.masks import decode_rle
from sam_train.records import ImageRecord, Rle

MASK_IDS_PER_IMAGE = 10_000
"""Mask ids of an image start at image id x MASK_IDS_PER_IMAGE: unique over the corpus while an image has fewer masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactedBox:
    """A place made unrecognisable before the picture was annotated or stored. Image frame, right and bottom exclusive."""

    kind: str
    """What was found there, as the configuration calls it: faces, plates."""
    score: float
    """The detector's, 0..1."""
    found_xyxy: tuple[float, float, float, float]
    """Where the detector saw it, in pixels; may reach over the picture's edge."""
    covered_xyxy: tuple[int, int, int, int]
    """The pixels that changed."""
    method: str
    """blur, pixelate or fill."""


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
    redacted_boxes: tuple[RedactedBox, ...] = ()
    """What privacy covered in it."""


class MaskOrigin(Enum):
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

    rle: Rle
    origin: MaskOrigin
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
    parent: int | None = None
    """The smallest mask that contains it, by its place among those that were found with it, if somebody looked."""
    name: str = ""
    """What it shows, if it was asked for by a word."""

    @property
    def mask(self) -> np.ndarray:
        """HW bool, decoded anew each time: the masks of a large image, all decoded, take gigabytes."""
        height, width = self.rle["size"]
        return decode_rle(self.rle, height=height, width=width)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewVerdict:
    """What a filter says of a candidate. `reason` is a short fixed name by which rejections are counted."""

    kept: bool
    reason: str = ""
