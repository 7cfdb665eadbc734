"""Tests that the order is a pure function of (seed, position), and that an epoch has each sample as often as its weight says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sam_train.data.sampler import SampleOrder


def epoch(order: SampleOrder, number: int = 0) -> list[tuple[int, int]]:
    return [order.locate(position) for position in range(number * len(order), (number + 1) * len(order))]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 16])
def test_every_epoch_contains_every_sample_once(window: int) -> None:
    sizes = [3, 0, 5, 1, 4, 2, 6]
    order = SampleOrder(sizes, seed=0, shuffle=True, window=window)
    all_samples = sorted((shard, index) for shard, size in enumerate(sizes) for index in range(size))
    epochs = [epoch(order, number) for number in range(4)]
    assert all(sorted(one) == all_samples for one in epochs)
    assert len({tuple(one) for one in epochs}) == 4


def test_position_does_not_depend_on_earlier_calls() -> None:
    sizes, positions = [40] * 9, np.random.default_rng(0).permutation(360 * 3)
    in_order = SampleOrder(sizes, seed=3, shuffle=True, window=2)
    expected = [in_order.locate(position) for position in range(360 * 3)]
    at_random = SampleOrder(sizes, seed=3, shuffle=True, window=2)
    assert all(at_random.locate(int(position)) == expected[position] for position in positions)
    assert SampleOrder(sizes, seed=3, shuffle=True, window=2).locate(1000) == expected[1000]


def test_reads_few_shards_at_a_time() -> None:
    order = SampleOrder([50] * 40, seed=0, shuffle=True, window=4)
    shards = [shard for shard, _ in epoch(order)]
    for start in range(0, len(shards), 200):
        assert len(set(shards[start : start + 200])) == 4
    first = shards[:200]
    assert min(Counter(first[:100]).values()) > 10, "the samples of a window are mixed"


def test_weights_repeat_samples() -> None:
    order = SampleOrder([4, 10, 6], weights=[10, 1, 0.5], seed=0, shuffle=True)
    assert len(order) == 4 * 10 + 10 + 3
    drawn: Counter[tuple[int, int]] = Counter()
    for number in range(40):
        counts = Counter(epoch(order, number))
        assert [counts[0, index] for index in range(4)] == [10] * 4
        assert [counts[1, index] for index in range(10)] == [1] * 10
        drawn.update({sample: count for sample, count in counts.items() if sample[0] == 2})
    assert sum(drawn.values()) == 3 * 40
    assert min(drawn.values()) > 8, "each epoch has another half: 20 expected"


def test_unshuffled_order_is_that_of_the_shards() -> None:
    assert epoch(SampleOrder([2, 0, 3], seed=0, shuffle=False, window=1), 5) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_distant_position_needs_one_window() -> None:
    order = SampleOrder([1000] * 200, seed=0, shuffle=True)
    order._window = with_call_count(order._window)  # type: ignore[method-assign]
    order.locate(123_456_789)
    assert order._window.calls == 1  # type: ignore[attr-defined]
    assert len(order._windows) == 1


def with_call_count(method):  # type: ignore[no-untyped-def]
    def call(*arguments):  # type: ignore[no-untyped-def]
        call.calls += 1
        return method(*arguments)

    call.calls = 0
    return call


def test_caches_are_bounded() -> None:
    order = SampleOrder([10] * 100, seed=0, shuffle=True, window=2)
    for position in range(0, 10_000, 7):
        order.locate(position)
    assert len(order._windows) <= 3
    assert len(order._epochs) <= 2


@pytest.mark.parametrize(
    "values",
    [
        {"window": 0},
        {"weights": [0, 0]},
        {"weights": [-1, 2]},
        {"weights": [float("nan"), 1]},
        {"weights": [1, 1], "shuffle": False},
    ],
    ids=str,
)
def test_rejects_invalid_values(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"window|weights"):
        SampleOrder([2, 3], **({"seed": 0, "shuffle": True} | values))  # type: ignore[arg-type]
