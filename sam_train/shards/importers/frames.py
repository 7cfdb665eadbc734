"""Decision whether the annotations of a data set refer to the pixels as stored or to the upright image (EXIF orientation).

Tools differ: COCO's ignore the orientation, most editors and OpenCV apply it. The size that the annotations declare tells only
for images that are turned by 90 degrees and not square, so one decision is made for the whole data set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

from PIL import ImageFile

from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards.image_io import exif_orientation, open_image_header
from sam_train.shards.importers.image_items import ImageItem
from sam_train.shards.importers.report import ImportReport

log = logging.getLogger(__name__)

Frame = Literal["stored", "upright"]
_TURNED_BY_90_DEGREES = range(5, 9)


class FrameDecision:
    """The frame of a data set's annotations; "auto" is decided when the first image with an EXIF orientation is met."""

    def __init__(
        self, frame: Frame | Literal["auto"], *, default: Frame, items: Iterable[ImageItem], report: ImportReport
    ) -> None:
        self._frame, self._default, self._items, self._report = frame, default, items, report
        self._decided: Frame | None = None if frame == "auto" else frame
        self._is_evident = frame != "auto"

    def is_upright(self, header: ImageFile.ImageFile) -> bool:
        """Return whether the annotations of this image refer to its upright pixels.

        Counts images with an orientation as "exif_orientation_ambiguous" if "auto" found no image that tells. Raises ShardError
        if two images tell different frames.
        """
        if exif_orientation(header) == 1:
            return True
        if self._decided is None:
            self._decide()
        if not self._is_evident:
            self._report.counts["exif_orientation_ambiguous"] += 1
        return self._decided == "upright"

    def _decide(self) -> None:
        examples: dict[Frame, str] = {}
        for item in self._items:
            if (frame := _evident_frame(item)) is not None:
                examples.setdefault(frame, item.name)
        if len(examples) == 2:
            both = f"those of {examples['stored']} fit the pixels as stored, those of {examples['upright']} the upright image"
            raise ShardError(f"the annotations have two frames: {both}; give --frame stored or --frame upright")
        self._is_evident = bool(examples)
        self._decided = next(iter(examples), self._default)
        if not examples:
            message = "images have an EXIF orientation and none tells the frame of the annotations: %s is assumed, see --frame"
            log.warning(message, self._default)


def _evident_frame(item: ImageItem) -> Frame | None:
    """Return the frame that the declared size of one image fits, None if it fits both or neither."""
    try:
        size = item.declared_size()
        if size is None or not item.file.exists():
            return None
        header = open_image_header(item.file.read(), name=item.name)
    except (ShardError, SkipSampleError):
        return None  # the import itself reports it
    width, height = header.size
    if width == height or exif_orientation(header) not in _TURNED_BY_90_DEGREES:
        return None
    return "stored" if size == (width, height) else "upright" if size == (height, width) else None
