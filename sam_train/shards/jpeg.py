"""JPEG bytes to pixels and back."""

from __future__ import annotations

import numpy as np
import simplejpeg

from sam_train.errors import SkipSample


def decode_jpeg(data: bytes, *, shard: str = "", key: str = "") -> np.ndarray:
    """JPEG to HWC uint8 RGB. Raises SkipSample("undecodable_jpeg") when the bytes are none."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise SkipSample("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """HWC uint8 RGB to JPEG without chroma subsampling, so that thin coloured objects keep their edges."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")
