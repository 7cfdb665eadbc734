"""JPEG bytes to pixels and back, and without what they say of the person who took them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat

import numpy as np
import simplejpeg

from sam_train.errors import SkipSampleError
from sam_train.records import MAX_PIXELS
from sam_train.shards.icc import strip_icc_chunk_texts

# A marker is FF and a code; FF 00 is a data byte of a scan, FF D0 to D7 stand between its pieces, and FF may be repeated.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_EOI, _TEM, _APP0, _APP15, _COM = 0xD9, 0x01, 0xE0, 0xEF, 0xFE
_ICC = b"ICC_PROFILE\0"
_NEEDED_TO_DECODE = {_APP0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Application segments that say how bytes become colours, beside the ICC profile: what they begin with, bytes that say so."""
_KINDS = (
    (0xE1, b"Exif\0", "EXIF"),
    (0xE1, b"http://ns.adobe.com/", "XMP"),
    (0xED, b"Photoshop 3.0\0", "IPTC"),
    (0xE2, _ICC, "texts of the ICC profile"),
    (_APP0, b"JFIF\0", "a thumbnail"),
    (_COM, b"", "a comment"),
)


def decode_jpeg(data: bytes, *, shard: str = "", key: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG to HWC uint8 RGB.

    Raises SkipSampleError as `check_jpeg_header` does, and as "undecodable_jpeg" if the data do not decode completely.
    """
    check_jpeg_header(data, shard=shard, key=key, max_pixels=max_pixels)
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise SkipSampleError("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error


def check_jpeg_header(data: bytes, *, shard: str = "", key: str = "", max_pixels: int = MAX_PIXELS) -> None:
    """Look at the size that a JPEG claims before memory is taken for it: a few bytes can claim 12 GB.

    Raises SkipSampleError: "undecodable_jpeg" when the bytes are none, or fewer than the claimed pixels need (each block of 8 x 8
    takes a bit at least); "too_large" above `max_pixels`.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise SkipSampleError("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error
    if height * width > max_pixels:
        message = f"the JPEG is {width} x {height}, at most {max_pixels} pixels are decoded: scale or cut it"
        raise SkipSampleError("too_large", message, shard=shard, key=key)
    if (height // 8) * (width // 8) > 8 * len(data):
        message = f"the JPEG is said to be {width} x {height}, which {len(data)} bytes cannot hold: replace it"
        raise SkipSampleError("undecodable_jpeg", message, shard=shard, key=key)


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """HWC uint8 RGB to JPEG without chroma subsampling, so that thin coloured objects keep their edges."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def strip_metadata(jpeg: bytes) -> bytes:
    """The same picture, bit for bit, without EXIF (place, date, owner, thumbnail), XMP, IPTC, comments and all else in
    application segments but JFIF without its thumbnail, the colours of an ICC profile (`icc.strip_icc_texts`) and Adobe's colour
    transform, and without what follows the picture's end.

    Raises ValueError for bytes that are no whole JPEG.
    """
    kept, position = [jpeg[:2]], 2
    for start, marker, content, bare, end in _bare_segments(jpeg):
        kept.append(jpeg[position:start])  # the data of a scan, if anything
        if bare == content:
            kept.append(jpeg[start:end])
        elif bare is not None:
            kept.append(bytes([0xFF, marker]) + (len(bare) + 2).to_bytes(2, "big") + bare)
        position = end
    return b"".join(kept)


def list_metadata(jpeg: bytes) -> list[str]:
    """What `strip_metadata` would take out: "EXIF", "XMP", "IPTC", "a comment", "APP5", "texts of the ICC profile",
    "bytes after its end", each once.

    Of a torn JPEG, what stands before the tear.
    """
    kinds: dict[str, None] = {}
    with suppress(ValueError):  # the decoder says it better
        for _, marker, content, bare, end in _bare_segments(jpeg):
            if bare != content:
                kinds[_kind(marker, content)] = None
            elif marker == _EOI and end < len(jpeg):
                kinds["bytes after its end"] = None
    return list(kinds)


def _bare_segments(jpeg: bytes) -> Iterator[tuple[int, int, bytes, bytes | None, int]]:
    """(start, marker, content, what of it may stay, end) of each segment; None where nothing may. Raises as `_segments`."""
    segments, torn = [], None
    try:
        for start, marker, at, end in _segments(jpeg):
            segments.append((start, marker, jpeg[at:end], end))
    except ValueError as error:
        torn = error
    parts = [content[len(_ICC) :] for _, marker, content, _ in segments if _is_icc(marker, content)]
    bare_parts: Iterator[bytes | None] = iter(strip_icc_chunk_texts(parts) or repeat(None))
    for start, marker, content, end in segments:
        if _is_icc(marker, content):
            part = next(bare_parts)
            yield start, marker, content, None if part is None else _ICC + part, end
        else:
            yield start, marker, content, _bare(marker, content), end
    if torn is not None:
        raise torn


def _is_icc(marker: int, content: bytes) -> bool:
    return marker == 0xE2 and content.startswith(_ICC)


def _bare(marker: int, content: bytes) -> bytes | None:
    if not _APP0 <= marker <= _APP15:
        return None if marker == _COM else content
    begin, length = _NEEDED_TO_DECODE.get(marker, (b"", 0))
    if not length or not content.startswith(begin):
        return None
    # JFIF ends with the size of a thumbnail, which may follow and must not be said to.
    return content[:12] + b"\0\0" if marker == _APP0 and len(content) > length else content[:length]


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
