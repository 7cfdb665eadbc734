"""Images of the source by key, read on demand and cached."""

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

HTTP_GONE = 410
"""HTTP status of an image that was taken down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """An image of the source: its JPEG, its size, and its record if the source is a shard."""

    jpeg: bytes
    height: int
    width: int
    image_id: int
    record: ImageRecord | None
    redacted_boxes: tuple[RedactedBox, ...]
    """Boxes that the privacy filter redacted."""


class ImageCache:
    """Reads images of a source by key. max_cached: number of JPEGs kept in memory."""

    def __init__(self, source: Source, *, max_cached: int = 64) -> None:
        self.references = {reference.key: reference for reference in source.references}
        self.source, self.max_cached = source, max_cached
        self._cached: OrderedDict[str, CachedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> CachedImage:
        """Return the image of a key.

        Raises HttpError: 404 if the source does not have the key, 410 if the image was taken down, 422 if it cannot be decoded.
        """
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
                return self._cached[key]
        image = self._load(key)
        with self._lock:
            self._cached[key] = image
            while len(self._cached) > self.max_cached:
                self._cached.popitem(last=False)
        return image

    def pixels(self, key: str) -> np.ndarray:
        """Return the decoded image, H x W x 3 uint8. Raises the errors of `get`."""
        image = self.get(key)  # already covered, so the privacy filter runs once per image
        return decode_jpeg(image.jpeg, key=key, max_pixels=image.height * image.width)

    def _load(self, key: str) -> CachedImage:
        if key not in self.references:
            raise HttpError(404, f"the source no longer has the image {key}: start sam-annotate with the corpus that listed it")
        try:
            image = self.source.load(self.references[key])
        except ShardError as error:
            taken_down = isinstance(error, SkipSampleError) and error.reason == TAKEN_DOWN
            raise HttpError(HTTP_GONE if taken_down else 422, str(error)) from error
        height, width = image.image.shape[:2]
        return CachedImage(
            jpeg=image.jpeg,
            height=height,
            width=width,
            image_id=image.image_id,
            record=image.record,
            redacted_boxes=image.redacted_boxes,
        )
