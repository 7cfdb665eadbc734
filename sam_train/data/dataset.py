"""Samples of shards by position, and the order in which they are drawn.

The order is a pure function of (seed, position): position p lies in epoch p // n, and epoch e is a permutation
drawn from (seed, e). A run that goes on at step s therefore goes on at position s x images per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Sampler

from sam_train.data.transforms import TrainingSample, Transform
from sam_train.errors import ConfigError, ShardError, SkipSample
from sam_train.shards import decode_jpeg
from sam_train.shards.index import IndexedSample, index_shard, read_sample


class ShardDataset(Dataset[TrainingSample]):
    """Map-style set over shards; an item is asked for by its position in the endless order.

    replace_unusable: a sample that cannot be used gives its place to the next of the order, as training wants it. Else its
        place stays empty, a sample without masks: what measures must not count its neighbour twice.

    Why samples were passed over is kept in `TrainingSample.skipped`. Raises ShardError after `max_consecutive_skips`
    unusable samples in a row, or as many as there are; ConfigError when there is none at all.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        transform: Transform,
        *,
        seed: int,
        shuffle: bool,
        replace_unusable: bool = True,
        max_consecutive_skips: int = 100,
    ) -> None:
        self.entries = [entry for shard in shards for entry in index_shard(shard)]
        if not self.entries:
            raise ConfigError(f"the {len(shards)} shards hold no image: nothing to train on")
        self.transform, self.seed, self.shuffle = transform, seed, shuffle
        self.replace_unusable = replace_unusable
        self.max_skips = min(max_consecutive_skips, len(self.entries))
        self._left_empty: dict[str, str] = {}
        """Samples without masks since the last that had some, and why; by key, because validation comes again and again."""
        self._permutations: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> TrainingSample:
        return self._usable(position) if self.replace_unusable else self._as_it_is(position)

    def _usable(self, position: int) -> TrainingSample:
        skipped: list[str] = []
        while len(skipped) < self.max_skips:
            entry = self.entries[self._order(position + len(skipped))]
            try:
                return self._load(entry, position, tuple(skipped))
            except SkipSample as skip:
                skipped.append(skip.reason)
        raise too_many(skipped)

    def _as_it_is(self, position: int) -> TrainingSample:
        entry = self.entries[self._order(position)]
        try:
            sample = self._load(entry, position, ())
        except SkipSample as skip:
            self._left_empty[f"{entry.shard}/{entry.key}"] = skip.reason
            if len(self._left_empty) == self.max_skips:
                raise too_many([*self._left_empty.values()]) from skip
            return TrainingSample.empty(entry.key, self.transform.image_size, skip.reason)
        self._left_empty = {}
        return sample

    def _load(self, entry: IndexedSample, position: int, skipped: tuple[str, ...]) -> TrainingSample:
        sample = read_sample(entry)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=entry.key)
        record = sample.record
        if image.shape[:2] != (record.height, record.width):
            message = f"the JPEG is {image.shape[1]} x {image.shape[0]}, its record says {record.width} x {record.height}"
            raise SkipSample("wrong_size", message, shard=sample.shard, key=entry.key)
        return self.transform(image, record, np.random.default_rng([self.seed, position]), skipped=skipped)

    def _order(self, position: int) -> int:
        epoch, place = divmod(position, len(self.entries))
        if not self.shuffle:
            return place
        if epoch not in self._permutations:  # two epochs at most are alive at a time
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.entries))
        return int(self._permutations[epoch][place])


def too_many(skipped: Sequence[str]) -> ShardError:
    """What to raise after so many unusable samples in a row, given why."""
    counted = ", ".join(f"{reason} {skipped.count(reason)} x" for reason in sorted(set(skipped)))
    return ShardError(f"{len(skipped)} samples in a row cannot be used ({counted}): the data or the filters are wrong")


class PositionSampler(Sampler[int]):
    """Positions start, start + 1, ... dealt out to ranks: endless when `num_positions` is None."""

    def __init__(self, *, start: int, num_positions: int | None, rank: int, world_size: int) -> None:
        self.start, self.num_positions, self.rank, self.world_size = start, num_positions, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        while self.num_positions is None or position < self.num_positions:
            yield position
            position += self.world_size
