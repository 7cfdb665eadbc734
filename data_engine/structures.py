"""Value types of the engine: a source image, its redacted boxes, and the verdict of a review on a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.records import ImageRecord

MASK_IDS_PER_IMAGE = 10_000
"""Mask ids of an image start at image id x MASK_IDS_PER_IMAGE: unique over the corpus while an image has fewer masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactedBox:
    """A box that was redacted before the image was annotated or stored. Image frame, right and bottom exclusive."""

    kind: str
    """Kind of the detection, named by the config: faces, plates."""
    score: float
    """Score of the detector, 0..1."""
    found_xyxy: tuple[float, float, float, float]
    """Box of the detector in pixels; it may extend beyond the image."""
    covered_xyxy: tuple[int, int, int, int]
    """Box of the pixels that were changed."""
    method: str
    """Redaction method: blur, pixelate or fill."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImage:
    """A decoded image of a source. `image` is exactly what `jpeg` decodes to, so its masks fit the image in the shard."""

    key: str
    image_id: int
    image: np.ndarray
    """Pixels, HWC uint8 RGB, upright."""
    jpeg: bytes
    """JPEG file that is written into the shard."""
    origin: str
    """Human-readable name: the path relative to the source folder, or `shard.tar/member`."""
    record: ImageRecord | None = None
    """Record with the existing masks, if the source is a shard."""
    redacted_boxes: tuple[RedactedBox, ...] = ()
    """Boxes that were redacted in the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewVerdict:
    """Verdict of a review on a prefilled mask. `reason` is a short fixed name by which rejections are counted."""

    kept: bool
    reason: str = ""
