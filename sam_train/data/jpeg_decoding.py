"""JPEG bytes to pixels no larger than the step needs: the decoder leaves out what would be averaged away."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from sam_train.data.record_parser import TargetRecord
from sam_train.errors import SkipSampleError
from sam_train.geometry import resize_image
from sam_train.records import MAX_PIXELS

MAX_SIDE = 32_768
"""Of a picture that is decoded at all, beside MAX_PIXELS: a header of a few bytes may ask for gigabytes."""
_FACTORS = (8, 4, 2)
"""By which libjpeg-turbo shrinks while it decodes, faster than without; the ones in between are slower than the whole."""
_SLIGHT = 1.25
"""Up to this much shrinking bilinear sampling leaves out no pixel that matters, and is ten times as fast as averaging."""


def read_jpeg_size(jpeg: bytes, record: TargetRecord, *, shard: str = "") -> tuple[int, int]:
    """Height and width that the JPEG's header has, before any memory is asked for.

    Raises SkipSampleError: "undecodable_jpeg" for what is none, and as `check_jpeg_size`.
    """
    try:
        full = simplejpeg.decode_jpeg_header(jpeg)[:2]
    except ValueError as error:
        raise _undecodable(error, record, shard) from error
    check_jpeg_size(full, record, shard=shard)
    return full


def decode_jpeg_reduced(jpeg: bytes, record: TargetRecord, height: int, width: int, *, shard: str = "") -> np.ndarray:
    """The whole picture as HWC uint8 RGB, as small as the decoder makes it but at least height x width, if it is that large.

    Its size is the record's, see `read_jpeg_size`. Raises SkipSampleError("undecodable_jpeg") for what is no whole JPEG.
    """
    full = record.height, record.width
    factor = next((f for f in _FACTORS if -(-full[0] // f) >= height and -(-full[1] // f) >= width), 1)
    wanted = {"min_height": -(-full[0] // factor), "min_width": -(-full[1] // factor), "min_factor": factor}
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", **(wanted if factor > 1 else {}))
    except ValueError as error:
        raise _undecodable(error, record, shard) from error


def _undecodable(error: ValueError, record: TargetRecord, shard: str) -> SkipSampleError:
    message = f"the JPEG does not decode: {error}"
    return SkipSampleError("undecodable_jpeg", message, shard=shard, key=record.key, field="jpg")


def check_jpeg_size(full: tuple[int, int], record: TargetRecord, *, shard: str = "") -> None:
    """Raise SkipSampleError unless a picture of this height and width may be decoded as that of the record: "too_large" for more
    than MAX_SIDE or MAX_PIXELS, "wrong_size" for another size than the record's."""
    place = {"shard": shard, "key": record.key, "field": "image.width"}
    said = f"the JPEG is {full[1]} x {full[0]}"
    if max(full) > MAX_SIDE or full[0] * full[1] > MAX_PIXELS:
        limit = f"sides of at most {MAX_SIDE} and {MAX_PIXELS} pixels"
        raise SkipSampleError("too_large", f"{said}: expected {limit}, shrink or cut it", **place)
    if full != (record.height, record.width):
        raise SkipSampleError("wrong_size", f"{said}, its record says {record.width} x {record.height}", **place)


def resize_decoded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """HWC uint8 to height x width: as `geometry.resize_image`, but bilinear where it shrinks only a little."""
    if height < image.shape[0] <= _SLIGHT * height and width < image.shape[1] <= _SLIGHT * width:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return resize_image(image, height, width)
