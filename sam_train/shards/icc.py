"""Removal of private texts from ICC profiles.

An ICC profile describes the colours of an image, and may also hold the name and serial number of a screen, the creator of the
file and the date. The parts that are known to describe colours are copied to an empty profile of the same length; everything
else becomes zero (ICC.1:2022, sections 7.2 header, 7.3 tag table, 9.2 tags). The colours of the image do not change.
"""

from __future__ import annotations

import struct

_HEADER, _ROW = 128, 12
_PRIVATE_IN_HEADER = ((24, 36), (48, 56), (80, 128))
"""Byte ranges of the header: date; manufacturer and model of the device; creator and ID of the profile."""
_COLOUR_TAGS = frozenset(
    b"rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad cicp gamt pre0 pre1 pre2"
    b" A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 D2B0 D2B1 D2B2 D2B3 B2D0 B2D1 B2D2 B2D3".split()
)


def strip_icc_texts(profile: bytes) -> bytes | None:
    """Return the profile, at its length, with its colour data only; None if the bytes are not an ICC profile."""
    if len(profile) < _HEADER + 4 or profile[36:40] != b"acsp":
        return None
    (count,) = struct.unpack_from(">I", profile, _HEADER)
    table = _HEADER + 4 + _ROW * count
    if table > len(profile):
        return None
    bare = bytearray(profile[:table]).ljust(len(profile), b"\0")
    for start, end in _PRIVATE_IN_HEADER:
        bare[start:end] = bytes(end - start)
    for name, offset, size in struct.iter_unpack(">4sII", profile[_HEADER + 4 : table]):
        if offset < table or offset + size > len(profile):
            return None
        # Other tags stay in the table and keep only their type.
        end = offset + (size if name in _COLOUR_TAGS else min(size, 4))
        bare[offset:end] = profile[offset:end]
    return bytes(bare)


def strip_icc_chunk_texts(chunks: list[bytes]) -> list[bytes] | None:
    """Apply `strip_icc_texts` to a profile in the APP2 segments of a JPEG; None if the segments are not an ICC profile.

    A chunk is one byte for its number, one byte for the number of chunks, and a part of the profile.
    """
    order = sorted(range(len(chunks)), key=lambda index: chunks[index][:1])
    if [chunks[index][:2] for index in order] != [bytes([n, len(chunks)]) for n in range(1, len(chunks) + 1)]:
        return None
    bare = strip_icc_texts(b"".join(chunks[index][2:] for index in order))
    if bare is None:
        return None
    stripped, position = list(chunks), 0
    for index in order:
        end = position + len(chunks[index]) - 2
        stripped[index] = chunks[index][:2] + bare[position:end]
        position = end
    return stripped
