"""The order of samples: a pure function of (seed, epoch, offset in the epoch).

An epoch contains each sample as often as its weight says. Shards are shuffled, then the samples within a window of shards, so
that few shards are read at any time, which suits slow disks, networks and caches. No state is needed to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_MAX_CACHED_WINDOWS = 3  # ranks and loader processes read from two windows at a time where one ends and the next begins


class SampleOrder:
    """Endless order that maps a position to a shard and the index of a sample in it.

    sizes: number of samples in each shard.
    weights: how often an epoch contains the samples of each shard; None is 1 for all. A weight of 2.5 is twice every sample
        and once half of the shard, another random half in each epoch.
    window: number of shards whose samples are mixed. A set of no more shards is shuffled completely.
    shuffle: if False, samples come in the order of the shards, as for validation; `weights` must be None then.

    Raises ValueError for values out of range, and for weights that leave no sample.
    """

    def __init__(
        self, sizes: Sequence[int], *, weights: Sequence[float] | None = None, seed: int, shuffle: bool, window: int = 16
    ) -> None:
        if window < 1 or (weights is not None and not shuffle):
            raise ValueError(f"window {window} must be at least 1, and weights need shuffle=True")
        self.sizes, self.seed, self.shuffle, self.window = np.asarray(sizes, np.int64), seed, shuffle, window
        units = list(_units(self.sizes, np.ones(len(sizes)) if weights is None else np.asarray(weights, np.float64)))
        self.unit_shards = np.array([shard for shard, _ in units], np.int64)
        self.unit_counts = np.array([count for _, count in units], np.int64)
        self.length = int(self.unit_counts.sum())
        if not self.length:
            raise ValueError("the weights leave no sample")
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.length

    def locate(self, position: int) -> tuple[int, int]:
        """Return the shard, and the index in it, of the sample at a position >= 0."""
        epoch, offset = divmod(position, self.length)
        units, starts = self._epoch(epoch)
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        shards, indices = self._window(epoch, window, units)
        return int(shards[offset - starts[window]]), int(indices[offset - starts[window]])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the units in their order, and the offset in the epoch at which each window begins."""
        if epoch not in self._epochs:
            num = len(self.unit_shards)
            units = self._rng(epoch, 0, 0).permutation(num) if self.shuffle else np.arange(num)
            ends = np.cumsum(self.unit_counts[units])
            starts = np.concatenate([[0], ends[self.window - 1 :: self.window]])
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1} | {epoch: (units, starts)}
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return shard and index of each sample of a window, in their order."""
        cached = self._windows.get((epoch, window))
        if cached is not None:
            return cached
        members = units[window * self.window : (window + 1) * self.window]
        shards = np.repeat(self.unit_shards[members], self.unit_counts[members])
        indices = np.concatenate([self._sample_indices(epoch, int(unit)) for unit in members])
        if self.shuffle:
            permutation = self._rng(epoch, 1, window).permutation(len(shards))
            shards, indices = shards[permutation], indices[permutation]
        while len(self._windows) >= _MAX_CACHED_WINDOWS:
            self._windows.pop(next(iter(self._windows)))
        self._windows[epoch, window] = shards, indices
        return shards, indices

    def _sample_indices(self, epoch: int, unit: int) -> np.ndarray:
        """Return the indices of the samples of a unit: all of its shard, or a random part."""
        size, count = int(self.sizes[self.unit_shards[unit]]), int(self.unit_counts[unit])
        return np.arange(size) if count == size else self._rng(epoch, 2, unit).permutation(size)[:count]

    def _rng(self, epoch: int, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, purpose, number])


class DistributedPositionSampler(Sampler[int]):
    """Positions start + rank, start + rank + world_size, ...: endless, or below `num_positions` if that is not None.

    The ranks together yield every position from `start` once.
    """

    def __init__(self, *, start: int, num_positions: int | None, rank: int, world_size: int) -> None:
        self.start, self.num_positions, self.rank, self.world_size = start, num_positions, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        while self.num_positions is None or position < self.num_positions:
            yield position
            position += self.world_size


def _units(sizes: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """Return (shard, number of its samples) for each time that a shard occurs in an epoch."""
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"weights must be finite and at least 0, got {weights[~(weights >= 0)].tolist()}")
    units = []
    for shard, (size, weight) in enumerate(zip(sizes.tolist(), weights.tolist(), strict=True)):
        units += [(shard, size)] * int(weight)
        units.append((shard, round((weight - int(weight)) * size)))
    return [(shard, count) for shard, count in units if count]
