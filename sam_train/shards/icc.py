"""ICC profiles say how numbers become colours, and more: a screen's name and serial number, who made the file and when.

What is known to be about colour is copied into a blank profile of the same length, everything else stays zero (ICC.1:2022,
chapters 7.2 header, 7.3 tag table, 9.2 tags). Colours come out as before.
"""

from __future__ import annotations

import struct

_HEADER, _ROW = 128, 12
_PRIVATE_IN_HEADER = ((24, 36), (48, 56), (80, 128))
"""Date; maker and model of the device; who wrote the profile, and its ID."""
_COLOUR_TAGS = frozenset(
    b"rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad cicp gamt pre0 pre1 pre2"
    b" A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 D2B0 D2B1 D2B2 D2B3 B2D0 B2D1 B2D2 B2D3".split()
)


def strip_icc_texts(profile: bytes) -> bytes | None:
    """The profile with its colours alone, as long as it was; None for bytes that are no profile."""
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
        # Of the others the type alone: their tags are there and empty.
        end = offset + (size if name in _COLOUR_TAGS else min(size, 4))
        bare[offset:end] = profile[offset:end]
    return bytes(bare)


def strip_icc_chunk_texts(chunks: list[bytes]) -> list[bytes] | None:
    """`strip_icc_texts` of a profile in the segments of a JPEG: number, number of all, part. None where they are no profile."""
    order = sorted(range(len(chunks)), key=lambda place: chunks[place][:1])
    if [chunks[place][:2] for place in order] != [bytes([n, len(chunks)]) for n in range(1, len(chunks) + 1)]:
        return None
    bare = strip_icc_texts(b"".join(chunks[place][2:] for place in order))
    if bare is None:
        return None
    found, position = list(chunks), 0
    for place in order:
        end = position + len(chunks[place]) - 2
        found[place] = chunks[place][:2] + bare[position:end]
        position = end
    return found
