"""Pictures of the source by their key, read when they are wanted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.sources import Source
from data_engine.structures import RedactedBox
from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord
from sam_train.shards import decode_jpeg
from sam_train.shards.take_down import TAKEN_DOWN

GONE = 410
"""Status of a picture that was taken down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """What the page needs of an image."""

    jpeg: bytes
    height: int
    width: int
    image_id: int
    record: ImageRecord | None
    covered: tuple[RedactedBox, ...]
    """What privacy covered in it."""


class ImageCache:
    """A source by keys. keep: how many JPEGs stay in memory."""

    def __init__(self, source: Source, *, keep: int = 64) -> None:
        self.references = {reference.key: reference for reference in source.references}
        self.source, self.keep = source, keep
        self._kept: OrderedDict[str, CachedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> CachedImage:
        """Raises HttpError: 404 for a key that the source does not have, 410 for a picture that was taken down, 422 for one
        that does not decode."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = self._load(key)
        with self._lock:
            self._kept[key] = image
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        return image

    def pixels(self, key: str) -> np.ndarray:
        """H x W x 3 uint8. Raises as `image`."""
        image = self.get(key)  # which is covered: a detector looks at it once
        return decode_jpeg(image.jpeg, key=key, max_pixels=image.height * image.width)

    def _load(self, key: str) -> CachedImage:
        if key not in self.references:
            raise HttpError(404, f"the source has no image {key} any more: start sam-annotate with the one it was listed from")
        try:
            image = self.source.load(self.references[key])
        except ShardError as error:
            taken_down = isinstance(error, SkipSampleError) and error.reason == TAKEN_DOWN
            raise HttpError(GONE if taken_down else 422, str(error)) from error
        height, width = image.image.shape[:2]
        return CachedImage(
            jpeg=image.jpeg,
            height=height,
            width=width,
            image_id=image.image_id,
            record=image.record,
            covered=image.redacted_boxes,
        )
