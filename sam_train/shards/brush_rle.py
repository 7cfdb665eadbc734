"""The run-length encoding of Label Studio's brush: bits of an RGBA image, of which the alpha channel is the mask.

The bits are: 32 for the number of values (4 x H x W), 5 for the bits of a value less one, four times 4 for the four sizes of a
length less one; then, until all values are there: 1 whether a run follows, 2 for the index of the size of its length, the length
less one, and one value (run) or as many as the length says (literals).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_SIZES = (3, 4, 8, 16)
_VALUE_BITS = 8


def decode_brush(data: bytes, *, height: int, width: int) -> np.ndarray:
    """Decode a brush's RLE to an H x W bool mask. Raises ValueError if it is truncated or does not fit the image."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    reader = _BitReader(bits)
    total, value_bits = reader.read(32), reader.read(5) + 1
    sizes = [reader.read(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise ValueError(f"it has {total} values, the image has 4 x {height} x {width}")
    if value_bits != _VALUE_BITS:
        raise ValueError(f"its values have {value_bits} bits, expected {_VALUE_BITS}")
    values, position = np.zeros(total, np.uint8), 0
    while position < total:
        is_run = reader.read(1)
        end = position + reader.read(sizes[reader.read(2)]) + 1
        if end > total:
            raise ValueError(f"a run ends at {end} of {total} values")
        values[position:end] = reader.read(_VALUE_BITS) if is_run else reader.read_bytes(end - position)
        position = end
    return values.reshape(height, width, 4)[..., 3] > 0


def encode_brush(mask: np.ndarray) -> bytes:
    """Encode an H x W bool mask as a brush's RLE; all channels of a masked pixel are 255."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = [0, *changes.tolist(), flat.size]
    pieces = [(4 * flat.size, 32), (_VALUE_BITS - 1, 5), *((size - 1, 4) for size in _SIZES)]
    for start, end in pairwise(bounds):
        value, remaining = 255 if flat[start] else 0, 4 * (end - start)
        while remaining:
            length = min(remaining, 1 << _SIZES[-1])
            index = next(index for index, size in enumerate(_SIZES) if length <= 1 << size)
            pieces += [(1, 1), (index, 2), (length - 1, _SIZES[index]), (value, _VALUE_BITS)]
            remaining -= length
    text = "".join(f"{value:0{bits}b}" for value, bits in pieces)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


class _BitReader:
    """Reader of unsigned integers from an array of bits."""

    def __init__(self, bits: np.ndarray) -> None:
        self._bits, self._position = bits, 0

    def read(self, count: int) -> int:
        """Return the next `count` bits as an integer. Raises ValueError at the end."""
        value = 0
        for bit in self._take(count).tolist():
            value = value << 1 | bit
        return value

    def read_bytes(self, count: int) -> np.ndarray:
        """Return the next `count` bytes. Raises ValueError at the end."""
        return np.packbits(self._take(8 * count))

    def _take(self, count: int) -> np.ndarray:
        end = self._position + count
        if end > len(self._bits):
            raise ValueError("it is truncated")
        taken, self._position = self._bits[self._position : end], end
        return taken
