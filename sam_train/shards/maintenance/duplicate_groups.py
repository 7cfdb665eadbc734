"""Pictures that are one picture, after resizing and recompression: fingerprints, and the pairs that are close.

A fingerprint is a perceptual hash of 256 bits (pHash: signs of the lowest 16 x 16 frequencies of the picture at 64 x 64, against
their median). Measured on 572 pictures of cell nuclei, COCO and BSDS500: the closest of their 163,306 pairs differ in 90 bits;
the same picture at twice, half or a quarter of its size, at JPEG quality 20, brighter or gray in 26 at most, at a quarter of its
size and quality 20 in 34; without 1 % at each side in 38; without 2 % in 62. Mirrored pictures are others. Pictures without
detail, such as colour gradients, vary more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import simplejpeg

from sam_train.errors import SkipSampleError
from sam_train.shards.jpeg import check_jpeg_header

NUM_BITS = 256
DEFAULT_THRESHOLD = 39
"""Largest distance in bits of two pictures that are called one."""
MAX_THRESHOLD = 47

_SIDE, _LOW, _DECODED_SIDE = 64, 16, 128
_NUM_BANDS, _BAND_BITS = 16, 16
_MAX_CANDIDATES = 1 << 21

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(i, j, distance) of P pairs, i < j, int64, shape (P,) each."""


def fingerprint(jpeg: bytes, *, shard: str = "", key: str = "") -> np.ndarray:
    """256 bits of a JPEG as uint64, shape (4,). Raises SkipSampleError as `decode_jpeg` does."""
    check_jpeg_header(jpeg, shard=shard, key=key)
    try:
        # Large pictures are decoded at a fraction of their size, which is where the time goes.
        pixels = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=_DECODED_SIDE, min_width=_DECODED_SIDE)
    except ValueError as error:
        raise SkipSampleError("undecodable_jpeg", f"the JPEG does not decode: {error}", shard=shard, key=key) from error
    small = cv2.resize(pixels.reshape(pixels.shape[:2]), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW].ravel()
    low[0] = -np.inf  # brightness
    return np.packbits(low > np.median(low[1:])).view(np.uint64)


def find_close_pairs(fingerprints: np.ndarray, threshold: int) -> Pairs:
    """All pairs of N different fingerprints, uint64 of shape (N, 4), that differ in `threshold` bits at most.

    Exact, and without comparing all with all: of 16 bands of 16 bits, two such fingerprints agree in one to a bit or two, so
    only those that do are compared. Raises ValueError for a threshold outside 0..47.
    """
    if not 0 <= threshold <= MAX_THRESHOLD:
        raise ValueError(f"threshold is 0 to {MAX_THRESHOLD} bits of {NUM_BITS}, got {threshold}")
    bands = np.ascontiguousarray(fingerprints).view(np.uint16).reshape(len(fingerprints), _NUM_BANDS)
    # If band b differed in more than (threshold - b) // 16 bits for every b, they would differ in more than threshold together.
    found = [
        pairs
        for band in range(_NUM_BANDS)
        for first, second in _candidates(bands[:, band], (threshold - band) // _NUM_BANDS)
        if len((pairs := _close(fingerprints, first, second, threshold))[0])
    ]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    whole = np.unique(np.stack([np.concatenate(column) for column in zip(*found, strict=True)]), axis=1)
    return whole[0], whole[1], whole[2]


def hamming_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Differing bits of fingerprints, uint64 of shape (..., 4) to int64 of shape (...)."""
    return np.asarray(np.bitwise_count(first ^ second).sum(-1, dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class DuplicateGroups:
    """Which of N pictures are near which. `same`: of each picture, the first with an equal fingerprint (often itself)."""

    fingerprints: np.ndarray
    same: np.ndarray
    pairs: Pairs
    """Of pictures that are the first of their fingerprint."""

    @staticmethod
    def from_fingerprints(fingerprints: Sequence[np.ndarray], threshold: int) -> DuplicateGroups:
        """From N fingerprints of shape (4,)."""
        stacked = np.stack(fingerprints) if len(fingerprints) else np.zeros((0, 4), np.uint64)
        _, first, inverse = np.unique(stacked, axis=0, return_index=True, return_inverse=True)
        order = np.sort(first)
        i, j, distance = find_close_pairs(stacked[order], threshold)
        return DuplicateGroups(stacked, first[inverse.reshape(-1)], (order[i], order[j], distance))

    def representatives(self, num_fixed: int) -> np.ndarray:
        """Of each picture the one that stands for it, int64 of shape (N,): itself where it is kept.

        The first `num_fixed` are all kept. Of the others one is kept unless it is near a picture before it that is; then the
        nearest of these stands for it.
        """
        representatives = np.arange(len(self.same))
        before: dict[int, list[tuple[int, int]]] = {}
        for i, j, distance in zip(*(column.tolist() for column in self.pairs), strict=True):
            before.setdefault(j, []).append((distance, i))
        for j in sorted(before):
            kept = [(distance, i) for distance, i in before[j] if representatives[i] == i]
            if j >= num_fixed and kept:
                representatives[j] = min(kept)[1]
        later = np.arange(len(self.same)) >= num_fixed
        return np.where(later & (self.same != np.arange(len(self.same))), representatives[self.same], representatives)

    def components(self) -> np.ndarray:
        """Of each picture the first that a chain of near ones leads to, int64 of shape (N,)."""
        roots = list(range(len(self.same)))

        def root(place: int) -> int:
            while roots[place] != place:
                roots[place] = roots[roots[place]]
                place = roots[place]
            return place

        for i, j in [*zip(*(column.tolist() for column in self.pairs[:2]), strict=True), *enumerate(self.same.tolist())]:
            low, high = sorted((root(i), root(j)))
            roots[high] = low
        return np.array([root(place) for place in range(len(roots))], np.int64)


def _candidates(values: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places whose values, uint16, differ in `radius` bits at most; a few million at a time, i < j."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.searchsorted(ordered, np.arange((1 << _BAND_BITS) + 1))
    for flipped in _masks(radius):
        wanted = ordered ^ np.uint16(flipped)
        low, counts = starts[wanted], starts[wanted.astype(np.int64) + 1] - starts[wanted]
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(counts):
            reach = np.searchsorted(ends, (ends[begin - 1] if begin else 0) + _MAX_CANDIDATES, side="right")
            piece = slice(begin, max(int(reach), begin + 1))
            first = np.repeat(np.arange(piece.start, min(piece.stop, len(counts))), counts[piece])
            offset = np.arange(len(first)) - np.repeat(np.cumsum(counts[piece]) - counts[piece], counts[piece])
            i, j = order[first], order[np.repeat(low[piece], counts[piece]) + offset]
            yield i[i < j], j[i < j]
            begin = piece.stop


def _masks(radius: int) -> list[int]:
    """All numbers of 16 bits of which `radius` at most are set."""
    chosen = (bits for count in range(radius + 1) for bits in combinations(range(_BAND_BITS), count))
    return [sum(1 << bit for bit in bits) for bits in chosen]


def _close(fingerprints: np.ndarray, first: np.ndarray, second: np.ndarray, threshold: int) -> Pairs:
    apart = hamming_distances(fingerprints[first], fingerprints[second])
    near = apart <= threshold
    return first[near], second[near], apart[near]
