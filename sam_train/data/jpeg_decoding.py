"""JPEG decoding at reduced scale: the decoder skips the detail that resizing to the model frame would average away."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from sam_train.data.record_parser import TargetRecord
from sam_train.errors import SkipSampleError
from sam_train.geometry import resize_image
from sam_train.records import MAX_PIXELS

MAX_SIDE = 32_768
"""Longest side of an image that is decoded, beside MAX_PIXELS: a header of a few bytes can declare gigabytes of pixels."""
_FACTORS = (8, 4, 2)
"""Factors by which libjpeg-turbo shrinks faster than it decodes in full. The factors in between are slower than that."""
_MAX_BILINEAR_SHRINK = 1.25
"""Largest factor of shrinking at which bilinear sampling is used: it loses little up to there, and is ten times as fast."""


def read_jpeg_size(jpeg: bytes, record: TargetRecord, *, shard: str = "") -> tuple[int, int]:
    """Return height and width from the header of a JPEG, before memory is allocated for its pixels.

    Raises SkipSampleError("undecodable_jpeg") for bytes without a JPEG header, and what `check_jpeg_size` raises.
    """
    try:
        size_hw = simplejpeg.decode_jpeg_header(jpeg)[:2]
    except ValueError as error:
        raise _undecodable(error, record, shard) from error
    check_jpeg_size(size_hw, record, shard=shard)
    return size_hw


def decode_jpeg_reduced(jpeg: bytes, record: TargetRecord, height: int, width: int, *, shard: str = "") -> np.ndarray:
    """Return the whole image as HWC uint8 RGB, at the smallest scale of the decoder that has at least height x width pixels.

    An image that is smaller than that is decoded at full size. The JPEG must have the size of the record, see
    `read_jpeg_size`. Raises SkipSampleError("undecodable_jpeg") for a truncated or corrupt JPEG.
    """
    full = record.height, record.width
    factor = next((f for f in _FACTORS if -(-full[0] // f) >= height and -(-full[1] // f) >= width), 1)
    options = {"min_height": -(-full[0] // factor), "min_width": -(-full[1] // factor), "min_factor": factor}
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", **(options if factor > 1 else {}))
    except ValueError as error:
        raise _undecodable(error, record, shard) from error


def _undecodable(error: ValueError, record: TargetRecord, shard: str) -> SkipSampleError:
    message = f"the JPEG does not decode: {error}"
    return SkipSampleError("undecodable_jpeg", message, shard=shard, key=record.key, field="jpg")


def check_jpeg_size(size_hw: tuple[int, int], record: TargetRecord, *, shard: str = "") -> None:
    """Raise SkipSampleError unless a JPEG of this height and width may be decoded as the image of the record.

    The reason is "too_large" for more than MAX_SIDE or MAX_PIXELS, and "wrong_size" for another size than the record's.
    """
    location = {"shard": shard, "key": record.key, "field": "image.width"}
    size = f"the JPEG is {size_hw[1]} x {size_hw[0]}"
    if max(size_hw) > MAX_SIDE or size_hw[0] * size_hw[1] > MAX_PIXELS:
        limit = f"sides of at most {MAX_SIDE} pixels and at most {MAX_PIXELS} pixels in all"
        raise SkipSampleError("too_large", f"{size}: expected {limit}, so resize or crop it", **location)
    if size_hw != (record.height, record.width):
        raise SkipSampleError("wrong_size", f"{size}, and its record declares {record.width} x {record.height}", **location)


def resize_decoded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize HWC uint8 to height x width: as `geometry.resize_image`, but bilinear if it shrinks by at most 1.25."""
    rows, columns = image.shape[:2]
    if height < rows <= _MAX_BILINEAR_SHRINK * height and width < columns <= _MAX_BILINEAR_SHRINK * width:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resize_image(image, height, width)
