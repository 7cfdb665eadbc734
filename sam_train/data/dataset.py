"""Samples of shards by position, and the order in which they are drawn.

The order is a pure function of (seed, position): position p lies in epoch p // n, and epoch e is a permutation
drawn from (seed, e). A run that goes on at step s therefore goes on at position s x images per step.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Sampler

from sam_train.data.transforms import TrainingSample, Transform
from sam_train.errors import ConfigError, ShardError, SkipSample
from sam_train.records import ImageRecord
from sam_train.shards import decode_jpeg


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a sample's two members lie: (offset, size) in the tar."""

    shard: Path
    key: str
    jpeg: tuple[int, int]
    json: tuple[int, int]


def index_shard(shard: Path) -> list[Entry]:
    """The samples of one tar from its headers. Raises ShardError for a torn tar or a half pair."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.removeprefix("./").rpartition(".")
                members.setdefault(key, {})[extension] = (member.offset_data, member.size)
                end = member.offset_data + member.size
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"the tar is torn or no tar: {error}; write the shard again", shard=str(shard)) from error
    if members and end > shard.stat().st_size:
        raise ShardError("the tar is torn: its last member is cut off; write the shard again", shard=str(shard))
    for key, parts in members.items():
        if set(parts) != {"jpg", "json"}:
            raise ShardError(f"expected {key}.jpg and {key}.json, found {sorted(parts)}", shard=str(shard), key=key)
    return [Entry(shard, key, parts["jpg"], parts["json"]) for key, parts in members.items()]


class ShardDataset(Dataset[TrainingSample]):
    """Map-style set over shards; an item is asked for by its position in the endless order.

    A sample that cannot be used gives its place to the next of the order; why is kept in `TrainingSample.skipped`.
    Raises ShardError after `max_consecutive_skips` unusable samples in a row, ConfigError when there is none at all.
    """

    def __init__(
        self, shards: Sequence[Path], transform: Transform, *, seed: int, shuffle: bool, max_consecutive_skips: int = 100
    ):
        self.entries = [entry for shard in shards for entry in index_shard(shard)]
        if not self.entries:
            raise ConfigError(f"the {len(shards)} shards hold no image: nothing to train on")
        self.transform, self.seed, self.shuffle = transform, seed, shuffle
        self.max_consecutive_skips = max_consecutive_skips
        self._permutations: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> TrainingSample:
        skipped: list[str] = []
        for attempt in range(min(self.max_consecutive_skips, len(self.entries))):
            entry = self.entries[self._order(position + attempt)]
            try:
                return self._load(entry, position, tuple(skipped))
            except SkipSample as skip:
                skipped.append(skip.reason)
        counted = ", ".join(f"{reason} {skipped.count(reason)} x" for reason in sorted(set(skipped)))
        raise ShardError(f"{len(skipped)} samples in a row cannot be trained on ({counted}): the data or the filters are wrong")

    def _load(self, entry: Entry, position: int, skipped: tuple[str, ...]) -> TrainingSample:
        with entry.shard.open("rb") as stream:
            jpeg, json = (os.pread(stream.fileno(), size, offset) for offset, size in (entry.jpeg, entry.json))
        record = ImageRecord.from_json(json, key=entry.key, shard=str(entry.shard))
        image = decode_jpeg(jpeg, shard=str(entry.shard), key=entry.key)
        if image.shape[:2] != (record.height, record.width):
            raise SkipSample(
                "size_mismatch",
                f"the JPEG is {image.shape[1]} x {image.shape[0]}, its record says {record.width} x {record.height}",
                shard=str(entry.shard),
                key=entry.key,
            )
        rng = np.random.default_rng([self.seed, position])
        return self.transform(image, record, rng, skipped=skipped)

    def _order(self, position: int) -> int:
        epoch, place = divmod(position, len(self.entries))
        if not self.shuffle:
            return place
        if epoch not in self._permutations:  # two epochs at most are alive at a time
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.entries))
        return int(self._permutations[epoch][place])


class PositionSampler(Sampler[int]):
    """Positions start, start + 1, ... dealt out to ranks: endless when `num_positions` is None."""

    def __init__(self, *, start: int, num_positions: int | None, rank: int, world_size: int) -> None:
        self.start, self.num_positions, self.rank, self.world_size = start, num_positions, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        while self.num_positions is None or position < self.num_positions:
            yield position
            position += self.world_size
