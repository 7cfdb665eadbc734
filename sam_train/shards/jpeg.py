"""Decoding and encoding of JPEGs, and removal of their metadata."""

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

# A marker is FF and a code. FF 00 is a data byte of a scan, FF D0 to D7 are restart markers in it, and FF may be repeated.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_EOI, _TEM, _APP0, _APP15, _COM = 0xD9, 0x01, 0xE0, 0xEF, 0xFE
_ICC = b"ICC_PROFILE\0"
_COLOUR_SEGMENTS = {_APP0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
"""Application segments that define colours, besides the ICC profile: marker -> (prefix, number of bytes to keep)."""
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
    """Check the size in the header of a JPEG before memory is allocated for it: a few bytes can declare 12 GB.

    Raises SkipSampleError: "undecodable_jpeg" if the bytes are not a JPEG or are fewer than the declared pixels need (each
    block of 8 x 8 takes at least one bit); "too_large" for more than `max_pixels`.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise SkipSampleError("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error
    if height * width > max_pixels:
        message = f"the JPEG is {width} x {height}, at most {max_pixels} pixels are decoded: scale or crop it"
        raise SkipSampleError("too_large", message, shard=shard, key=key)
    if (height // 8) * (width // 8) > 8 * len(data):
        message = f"the JPEG header declares {width} x {height}, which {len(data)} bytes cannot hold: replace the file"
        raise SkipSampleError("undecodable_jpeg", message, shard=shard, key=key)


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encode HWC uint8 RGB as a JPEG without chroma subsampling, so that thin coloured objects keep their edges."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def strip_metadata(jpeg: bytes) -> bytes:
    """Remove the metadata of a JPEG; the compressed pixels stay bit-identical.

    Removes EXIF (location, date, owner, thumbnail), XMP, IPTC, comments, all other application segments and everything after the
    end of the image. Keeps JFIF without its thumbnail, the colours of an ICC profile (`icc.strip_icc_texts`) and Adobe's colour
    transform.

    Raises ValueError for bytes that are not a complete JPEG.
    """
    kept, position = [jpeg[:2]], 2
    for start, marker, content, stripped, end in _strip_segments(jpeg):
        kept.append(jpeg[position:start])  # the data of a scan, if any
        if stripped == content:
            kept.append(jpeg[start:end])
        elif stripped is not None:
            kept.append(bytes([0xFF, marker]) + (len(stripped) + 2).to_bytes(2, "big") + stripped)
        position = end
    return b"".join(kept)


def list_metadata(jpeg: bytes) -> list[str]:
    """Return the kinds of metadata that `strip_metadata` would remove, each once.

    The kinds are "EXIF", "XMP", "IPTC", "a comment", "APP5", "texts of the ICC profile", "bytes after its end" and the like.
    For a truncated JPEG, the list covers the part that is present.
    """
    kinds: dict[str, None] = {}
    with suppress(ValueError):  # decoding the JPEG reports the error
        for _, marker, content, stripped, end in _strip_segments(jpeg):
            if stripped != content:
                kinds[_kind(marker, content)] = None
            elif marker == _EOI and end < len(jpeg):
                kinds["bytes after its end"] = None
    return list(kinds)


def _strip_segments(jpeg: bytes) -> Iterator[tuple[int, int, bytes, bytes | None, int]]:
    """Yield (start, marker, content, stripped content, end) of each segment.

    The stripped content is what may be kept, None if the segment must be removed. Raises ValueError as `_segments` does.
    """
    segments, truncation = [], None
    try:
        for start, marker, at, end in _segments(jpeg):
            segments.append((start, marker, jpeg[at:end], end))
    except ValueError as error:
        truncation = error
    parts = [content[len(_ICC) :] for _, marker, content, _ in segments if _is_icc(marker, content)]
    stripped_parts: Iterator[bytes | None] = iter(strip_icc_chunk_texts(parts) or repeat(None))
    for start, marker, content, end in segments:
        if _is_icc(marker, content):
            part = next(stripped_parts)
            yield start, marker, content, None if part is None else _ICC + part, end
        else:
            yield start, marker, content, _strip_content(marker, content), end
    if truncation is not None:
        raise truncation


def _is_icc(marker: int, content: bytes) -> bool:
    return marker == 0xE2 and content.startswith(_ICC)


def _strip_content(marker: int, content: bytes) -> bytes | None:
    if not _APP0 <= marker <= _APP15:
        return None if marker == _COM else content
    prefix, length = _COLOUR_SEGMENTS.get(marker, (b"", 0))
    if not length or not content.startswith(prefix):
        return None
    # JFIF ends with the size of a thumbnail that may follow: it is set to 0 x 0.
    return content[:12] + b"\0\0" if marker == _APP0 and len(content) > length else content[:length]


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, marker, start of content, end) of each segment. Raises ValueError if there is no end marker."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError("not a JPEG: it does not begin with FF D8")
    position, marker = 2, 0
    while marker != _EOI:
        match = _MARKER.search(jpeg, position)
        marker, end = (match[1][0], match.end()) if match else (0, len(jpeg))
        length = 0 if marker in (_EOI, _TEM) else int.from_bytes(jpeg[end : end + 2], "big")  # includes its own two bytes
        if match is None or end + length > len(jpeg):
            raise ValueError("truncated or corrupt JPEG: no end marker after its segments")
        yield match.start(), marker, min(end + 2, end + length), end + length
        position = end + length


def _kind(marker: int, content: bytes) -> str:
    names = (name for code, prefix, name in _KINDS if code == marker and content.startswith(prefix))
    return next(names, f"APP{marker - _APP0}")
