"""The order is a pure function of (seed, epoch, position); an epoch has every sample as often as its weight says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sam_train.data.sampler import SampleOrder


def epoch(order: SampleOrder, number: int = 0) -> list[tuple[int, int]]:
    return [order.locate(position) for position in range(number * len(order), (number + 1) * len(order))]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 16])
def test_every_epoch_has_every_sample_once(window: int) -> None:
    sizes = [3, 0, 5, 1, 4, 2, 6]
    order = SampleOrder(sizes, seed=0, shuffle=True, window=window)
    everything = sorted((shard, place) for shard, size in enumerate(sizes) for place in range(size))
    epochs = [epoch(order, number) for number in range(4)]
    assert all(sorted(one) == everything for one in epochs)
    assert len({tuple(one) for one in epochs}) == 4


def test_a_position_depends_on_nothing_that_was_asked_before() -> None:
    sizes, positions = [40] * 9, np.random.default_rng(0).permutation(360 * 3)
    forwards = SampleOrder(sizes, seed=3, shuffle=True, window=2)
    expected = [forwards.locate(position) for position in range(360 * 3)]
    jumping = SampleOrder(sizes, seed=3, shuffle=True, window=2)
    assert all(jumping.locate(int(position)) == expected[position] for position in positions)
    assert SampleOrder(sizes, seed=3, shuffle=True, window=2).locate(1000) == expected[1000]


def test_few_shards_are_read_at_a_time() -> None:
    order = SampleOrder([50] * 40, seed=0, shuffle=True, window=4)
    shards = [shard for shard, _ in epoch(order)]
    for start in range(0, len(shards), 200):
        assert len(set(shards[start : start + 200])) == 4
    first = shards[:200]
    assert min(Counter(first[:100]).values()) > 10, "mixed, not one after the other"


def test_weights_repeat_samples() -> None:
    order = SampleOrder([4, 10, 6], weights=[10, 1, 0.5], seed=0, shuffle=True)
    assert len(order) == 4 * 10 + 10 + 3
    drawn: Counter[tuple[int, int]] = Counter()
    for number in range(40):
        counts = Counter(epoch(order, number))
        assert [counts[0, place] for place in range(4)] == [10] * 4
        assert [counts[1, place] for place in range(10)] == [1] * 10
        drawn.update({sample: count for sample, count in counts.items() if sample[0] == 2})
    assert sum(drawn.values()) == 3 * 40
    assert min(drawn.values()) > 8, "the half is another one each epoch: 20 expected"


def test_unshuffled_is_the_order_of_the_shards() -> None:
    assert epoch(SampleOrder([2, 0, 3], seed=0, shuffle=False, window=1), 5) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_a_far_position_costs_no_more_than_the_first() -> None:
    order = SampleOrder([1000] * 200, seed=0, shuffle=True)
    order._window = counted(order._window)  # type: ignore[method-assign]
    order.locate(123_456_789)
    assert order._window.calls == 1  # type: ignore[attr-defined]
    assert len(order._windows) == 1


def counted(method):  # type: ignore[no-untyped-def]
    def call(*arguments):  # type: ignore[no-untyped-def]
        call.calls += 1
        return method(*arguments)

    call.calls = 0
    return call


def test_what_is_kept_does_not_grow() -> None:
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
def test_values_that_cannot_be(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"window|weights"):
        SampleOrder([2, 3], **({"seed": 0, "shuffle": True} | values))  # type: ignore[arg-type]
