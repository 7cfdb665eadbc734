"""Which sample comes at which position: a pure function of (seed, epoch, place in the epoch).

An epoch has every sample as often as its weight says. Shards are shuffled, then samples within a window of shards, so that
at any time few shards are read, which is what slow disks, networks and caches want. Nothing has to be remembered to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_KEPT_WINDOWS = 3  # positions of several ranks and loader processes meet at the seams


class SampleOrder:
    """Position -> (shard, place in the shard), endless.

    sizes: samples in each shard; weights: how often each shard's samples come in an epoch (1 where None). A weight of 2.5 is
        twice every sample and a half of the shard, another half at random each epoch.
    window: shards whose samples are mixed; a set of no more than that many is shuffled through and through.
    shuffle: False is the order of the shards, for what measures; weights must be None then.

    Raises ValueError for weights that leave nothing, and values out of range.
    """

    def __init__(
        self, sizes: Sequence[int], *, weights: Sequence[float] | None = None, seed: int, shuffle: bool, window: int = 16
    ) -> None:
        if window < 1 or (weights is not None and not shuffle):
            raise ValueError(f"window {window} must be at least 1, and only a shuffled order has weights")
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
        """Shard and place in it of a position >= 0."""
        epoch, rest = divmod(position, self.length)
        units, starts = self._epoch(epoch)
        window = int(np.searchsorted(starts, rest, side="right")) - 1
        shards, places = self._window(epoch, window, units)
        return int(shards[rest - starts[window]]), int(places[rest - starts[window]])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Units in their order, and the place in the epoch at which each window begins."""
        if epoch not in self._epochs:
            num = len(self.unit_shards)
            units = self._generator(epoch, 0, 0).permutation(num) if self.shuffle else np.arange(num)
            ends = np.cumsum(self.unit_counts[units])
            starts = np.concatenate([[0], ends[self.window - 1 :: self.window]])
            self._epochs = {e: known for e, known in self._epochs.items() if e == epoch - 1} | {epoch: (units, starts)}
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shards and places of the samples of a window, in their order."""
        known = self._windows.get((epoch, window))
        if known is None:
            chosen = units[window * self.window : (window + 1) * self.window]
            shards = np.repeat(self.unit_shards[chosen], self.unit_counts[chosen])
            places = np.concatenate([self._places(epoch, int(unit)) for unit in chosen])
            if self.shuffle:
                mixed = self._generator(epoch, 1, window).permutation(len(shards))
                shards, places = shards[mixed], places[mixed]
            known = shards, places
            while len(self._windows) >= _KEPT_WINDOWS:
                self._windows.pop(next(iter(self._windows)))
            self._windows[epoch, window] = known
        return known

    def _places(self, epoch: int, unit: int) -> np.ndarray:
        size, count = int(self.sizes[self.unit_shards[unit]]), int(self.unit_counts[unit])
        return np.arange(size) if count == size else self._generator(epoch, 2, unit).permutation(size)[:count]

    def _generator(self, epoch: int, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, what, number])


def _units(sizes: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """(shard, number of its samples) for each time that a shard comes in an epoch."""
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"weights must be numbers of at least 0, got {weights[~(weights >= 0)].tolist()}")
    units = []
    for shard, (size, weight) in enumerate(zip(sizes.tolist(), weights.tolist(), strict=True)):
        units += [(shard, size)] * int(weight)
        units.append((shard, round((weight - int(weight)) * size)))
    return [(shard, count) for shard, count in units if count]


class DistributedPositionSampler(Sampler[int]):
    """Positions start, start + 1, ... dealt out to ranks: endless when `num_positions` is None."""

    def __init__(self, *, start: int, num_positions: int | None, rank: int, world_size: int) -> None:
        self.start, self.num_positions, self.rank, self.world_size = start, num_positions, rank, world_size

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        while self.num_positions is None or position < self.num_positions:
            yield position
            position += self.world_size
