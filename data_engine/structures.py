"""Nouns of the engine: a picture to annotate, what was covered in it, a mask proposed for it, what a filter says of the mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.records import ImageRecord

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewVerdict:
    """What a filter says of a candidate. `reason` is a short fixed name by which rejections are counted."""

    kept: bool
    reason: str = ""
