"""JPEG bytes to pixels and back, and without what they say of the person who took them."""

from __future__ import annotations

import re

import numpy as np
import simplejpeg

from sam_train.errors import SkipSample

# A marker is FF and a code; FF 00 is a data byte of a scan, FF D0 to D7 stand between its pieces, and FF may be repeated.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_EOI, _TEM, _APP0, _APP15, _COM = 0xD9, 0x01, 0xE0, 0xEF, 0xFE
_NEEDED_TO_DECODE = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""Application segments that say how bytes become colours, by marker and what they begin with."""


def decode_jpeg(data: bytes, *, shard: str = "", key: str = "") -> np.ndarray:
    """JPEG to HWC uint8 RGB. Raises SkipSample("undecodable_jpeg") when the bytes are none."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise SkipSample("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """HWC uint8 RGB to JPEG without chroma subsampling, so that thin coloured objects keep their edges."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def without_metadata(jpeg: bytes) -> bytes:
    """The same picture, bit for bit, without EXIF (place, date, owner, thumbnail), XMP, IPTC, comments and all else in
    application segments but JFIF, the ICC profile and Adobe's colour transform, and without what follows the picture's end.

    Raises ValueError for bytes that are no whole JPEG.
    """
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG: it does not begin with FF D8")
    kept, position, marker = [jpeg[:2]], 2, 0
    while marker != _EOI:
        found = _MARKER.search(jpeg, position)
        marker, end = (found[1][0], found.end()) if found else (0, len(jpeg))
        length = 0 if marker in (_EOI, _TEM) else int.from_bytes(jpeg[end : end + 2], "big")  # counts its own two bytes
        if found is None or end + length > len(jpeg):
            raise ValueError("a torn JPEG: its segments do not lead to its end")
        kept.append(jpeg[position : found.start()])  # the data of a scan, if anything
        if not _is_metadata(marker, jpeg[end + 2 : end + length]):
            kept.append(jpeg[found.start() : end + length])
        position = end + length
    return b"".join(kept)


def _is_metadata(marker: int, content: bytes) -> bool:
    if not _APP0 <= marker <= _APP15:
        return marker == _COM
    return marker not in _NEEDED_TO_DECODE or not content.startswith(_NEEDED_TO_DECODE[marker])
