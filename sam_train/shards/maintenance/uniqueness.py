"""Check that keys and image ids are unique in a data set, with 16 bytes of memory per sample."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sam_train.shards.maintenance.findings import Finding, finding
from sam_train.shards.maintenance.tar_recovery import scan_tar


class Uniqueness:
    """Collects the keys and image ids of shard after shard and reports those that occur twice.

    Only a 64-bit hash of each is kept, so that the 11 million images of SA-1B fit in memory. The probability that two different
    ones among them have the same hash is 1 in 300,000. Keys in messages are read again from the shards.
    """

    def __init__(self) -> None:
        self._shards: list[Path] = []
        self._first: list[int] = []
        self._hashes = {"key": array("Q"), "image.image_id": array("Q")}
        self._num_anonymous = 0

    def add(self, shard: Path, keys: Sequence[str], image_ids: Sequence[int | None]) -> None:
        """Add the samples of a shard; None stands for an image id that could not be read."""
        self._shards.append(shard)
        self._first.append(len(self._hashes["key"]))
        self._hashes["key"].extend(_hash(key) for key in keys)
        for image_id in image_ids:
            self._num_anonymous += image_id is None
            self._hashes["image.image_id"].append(_hash(image_id if image_id is not None else f"none {self._num_anonymous}"))

    def findings(self) -> list[Finding]:
        """Return a finding for each sample whose key or image id an earlier one has."""
        found = []
        for field, reason in (("key", "duplicate_key"), ("image.image_id", "duplicate_image_id")):
            for first, again in self._repeated(field):
                (shard, key), (other_shard, other_key) = self._sample(again), self._sample(first)
                message = f"{other_key} of {other_shard} has the same {field.rpartition('.')[2].replace('_', ' ')}"
                found.append(finding(str(shard), key, field, reason, message))
        return found

    def _repeated(self, field: str) -> Iterator[tuple[int, int]]:
        """Yield (first, repeated) positions, counted over all shards."""
        hashes = np.frombuffer(self._hashes[field], np.uint64) if len(self._hashes[field]) else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, bool)
        start_of = np.flatnonzero(new)[np.cumsum(new) - 1] if len(ordered) else np.zeros(0, int)
        again = np.flatnonzero(~new)
        pairs = sorted((int(order[position]), int(order[start_of[position]])) for position in again)
        return ((first, position) for position, first in pairs)

    def _sample(self, position: int) -> tuple[Path, str]:
        index = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._shards[index], scan_tar(self._shards[index]).complete_keys()[position - self._first[index]]


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(f"{value}".encode(errors="surrogatepass"), digest_size=8).digest(), "big")
