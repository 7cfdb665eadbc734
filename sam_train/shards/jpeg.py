"""JPEG bytes to pixels and back, and without what they say of the person who took them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import simplejpeg

from sam_train.errors import SkipSample
from sam_train.records import MAX_PIXELS

# A marker is FF and a code; FF 00 is a data byte of a scan, FF D0 to D7 stand between its pieces, and FF may be repeated.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_EOI, _TEM, _APP0, _APP15, _COM = 0xD9, 0x01, 0xE0, 0xEF, 0xFE
_NEEDED_TO_DECODE = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""Application segments that say how bytes become colours, by marker and what they begin with."""
_KINDS = (
    (0xE1, b"Exif\0", "EXIF"),
    (0xE1, b"http://ns.adobe.com/", "XMP"),
    (0xED, b"Photoshop 3.0\0", "IPTC"),
    (_COM, b"", "a comment"),
)


def decode_jpeg(data: bytes, *, shard: str = "", key: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """JPEG to HWC uint8 RGB. Raises SkipSample as `check_header` does, and "undecodable_jpeg" for what does not decode whole."""
    check_header(data, shard=shard, key=key, max_pixels=max_pixels)
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise SkipSample("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error


def check_header(data: bytes, *, shard: str = "", key: str = "", max_pixels: int = MAX_PIXELS) -> None:
    """Look at the size that a JPEG claims before memory is taken for it: a few bytes can claim 12 GB.

    Raises SkipSample: "undecodable_jpeg" when the bytes are none, or fewer than the claimed pixels need (each block of 8 x 8
    takes a bit at least); "too_large" above `max_pixels`.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise SkipSample("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error
    if height * width > max_pixels:
        message = f"the JPEG is {width} x {height}, at most {max_pixels} pixels are decoded: scale or cut it"
        raise SkipSample("too_large", message, shard=shard, key=key)
    if (height // 8) * (width // 8) > 8 * len(data):
        message = f"the JPEG is said to be {width} x {height}, which {len(data)} bytes cannot hold: replace it"
        raise SkipSample("undecodable_jpeg", message, shard=shard, key=key)


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """HWC uint8 RGB to JPEG without chroma subsampling, so that thin coloured objects keep their edges."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def without_metadata(jpeg: bytes) -> bytes:
    """The same picture, bit for bit, without EXIF (place, date, owner, thumbnail), XMP, IPTC, comments and all else in
    application segments but JFIF, the ICC profile and Adobe's colour transform, and without what follows the picture's end.

    Raises ValueError for bytes that are no whole JPEG.
    """
    kept, position = [jpeg[:2]], 2
    for start, marker, content, end in _segments(jpeg):
        kept.append(jpeg[position:start])  # the data of a scan, if anything
        if not _is_metadata(marker, jpeg[content:end]):
            kept.append(jpeg[start:end])
        position = end
    return b"".join(kept)


def metadata_of(jpeg: bytes) -> list[str]:
    """What `without_metadata` would take out: "EXIF", "XMP", "IPTC", "a comment", "APP5", "bytes after its end", each once.

    Of a torn JPEG, what stands before the tear.
    """
    kinds: dict[str, None] = {}
    with suppress(ValueError):  # the decoder says it better
        for _, marker, content, end in _segments(jpeg):
            if _is_metadata(marker, jpeg[content:end]):
                kinds[_kind(marker, jpeg[content:end])] = None
            elif marker == _EOI and end < len(jpeg):
                kinds["bytes after its end"] = None
    return list(kinds)


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(start, marker, start of its content, end) of each segment. Raises ValueError where they do not lead to the end."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG: it does not begin with FF D8")
    position, marker = 2, 0
    while marker != _EOI:
        found = _MARKER.search(jpeg, position)
        marker, end = (found[1][0], found.end()) if found else (0, len(jpeg))
        length = 0 if marker in (_EOI, _TEM) else int.from_bytes(jpeg[end : end + 2], "big")  # counts its own two bytes
        if found is None or end + length > len(jpeg):
            raise ValueError("a torn JPEG: its segments do not lead to its end")
        yield found.start(), marker, min(end + 2, end + length), end + length
        position = end + length


def _kind(marker: int, content: bytes) -> str:
    named = (name for code, begin, name in _KINDS if code == marker and content.startswith(begin))
    return next(named, f"APP{marker - _APP0}")


def _is_metadata(marker: int, content: bytes) -> bool:
    if not _APP0 <= marker <= _APP15:
        return marker == _COM
    return marker not in _NEEDED_TO_DECODE or not content.startswith(_NEEDED_TO_DECODE[marker])
