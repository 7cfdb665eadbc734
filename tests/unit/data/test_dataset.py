"""The order of samples is a pure function of (seed, position); unusable samples give way and are counted, then end the run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_train.data.dataset import ShardDataset
from sam_train.data.sampler import DistributedPositionSampler
from sam_train.data.sources import index_shards
from sam_train.data.transforms import Transform
from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord
from sam_train.shards import write_shard

MakeSample = Callable[..., tuple[ImageRecord, bytes]]
TRANSFORM = Transform(image_size=32, max_masks=1, flip=True)


@pytest.fixture
def shards(tmp_path: Path, sample: MakeSample) -> list[Path]:
    """Seven images in two shards."""
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    write_shard(paths[0], [sample(i) for i in range(4)])
    write_shard(paths[1], [sample(i) for i in range(4, 7)])
    return paths


def make(shards: list[Path], *, weights: list[float] | None = None, **values: Any) -> ShardDataset:
    found = index_shards(shards, weights=weights, cache=None, strict=False)
    return ShardDataset(found, **{"transform": TRANSFORM, "seed": 0, "shuffle": True} | values)


def keys(dataset: ShardDataset, positions: range) -> list[str]:
    return [dataset[p].key for p in positions]


ALL = {f"sa_{i:06d}" for i in range(7)}


def test_every_epoch_is_a_permutation_of_its_own(shards: list[Path]) -> None:
    dataset = make(shards)
    assert len(dataset) == 7
    epochs = [keys(dataset, range(7 * e, 7 * e + 7)) for e in range(5)]
    assert all(set(epoch) == ALL for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_seeds_differ(shards: list[Path]) -> None:
    orders = {tuple(keys(make(shards, seed=seed), range(14))) for seed in range(4)}
    assert len(orders) == 4


def test_a_sample_depends_on_its_position_alone(shards: list[Path]) -> None:
    """Asked for again by another process, in another order, across epochs: the same masks, the same flips."""
    first = make(shards)
    forwards = {p: first[p] for p in range(20)}
    for position in [19, 3, 12, 0, 18, 4, 7, 6]:
        for dataset in (first, make(shards)):
            again = dataset[position]
            assert again.key == forwards[position].key
            assert np.array_equal(again.image, forwards[position].image)
            assert np.array_equal(again.masks, forwards[position].masks)


def test_augmentation_is_drawn_anew_each_epoch(shards: list[Path]) -> None:
    dataset = make(shards)
    looks: dict[str, set[bytes]] = {}
    for position in range(7 * 8):
        sample = dataset[position]
        looks.setdefault(sample.key, set()).add(sample.masks.tobytes())
    assert all(len(seen) > 1 for seen in looks.values())


def test_unshuffled_is_the_order_of_the_shards(shards: list[Path]) -> None:
    assert keys(make(shards, shuffle=False), range(9)) == [f"sa_{i % 7:06d}" for i in range(9)]


def test_an_unusable_sample_gives_its_place_to_the_next(tmp_path: Path, sample: MakeSample) -> None:
    """No mask; a JPEG of another size; bytes that are no JPEG: each skipped under its name."""
    broken = [sample(0, num_masks=0), (sample(1, width=50)[0], sample(1)[1]), (sample(2)[0], b"no jpeg")]
    write_shard(tmp_path / "a.tar", [*broken, sample(3)])
    dataset = make([tmp_path / "a.tar"], shuffle=False)
    taken = dataset[0]
    assert taken.key == "sa_000003"
    assert taken.skipped == ("no_mask", "wrong_size", "undecodable_jpeg")
    assert dataset[3].skipped == ()


def test_what_measures_counts_no_sample_twice(tmp_path: Path, sample: MakeSample) -> None:
    """A place that cannot be filled stays empty instead of going to the neighbour, who comes in its own place too."""
    write_shard(tmp_path / "a.tar", [sample(0, num_masks=0), sample(1), (sample(2)[0], b"no jpeg"), sample(3)])
    dataset = make([tmp_path / "a.tar"], shuffle=False, replace_unusable=False)
    for _ in range(3):  # as often as validation comes
        samples = [dataset[position] for position in range(4)]
        assert [(s.key, len(s.masks), s.skipped) for s in samples] == [
            ("sa_000000", 0, ("no_mask",)),
            ("sa_000001", 1, ()),
            ("sa_000002", 0, ("undecodable_jpeg",)),
            ("sa_000003", 1, ()),
        ]
        assert [s.image.any() for s in samples] == [False, True, False, True]
        assert {(s.image.shape, s.masks.shape[1:]) for s in samples} == {((32, 32, 3), (32, 32))}


def test_places_left_empty_are_counted_too(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(i, num_masks=0) for i in range(3)] + [sample(3)])
    path = [tmp_path / "a.tar"]
    dataset = make(path, shuffle=False, replace_unusable=False)
    for position in (0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2):  # the same ones again are no more than they were
        dataset[position]
    dataset = make(path, shuffle=False, replace_unusable=False, max_consecutive_skips=3)
    assert [dataset[position].skipped for position in (3, 0, 1)] == [(), ("no_mask",), ("no_mask",)]
    with pytest.raises(ShardError, match=r"3 samples in a row cannot be used \(no_mask 3 x\)"):
        dataset[2]


def test_too_many_in_a_row_end_the_run(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(i, num_masks=0) for i in range(4)] + [sample(4)])
    assert make([tmp_path / "a.tar"], shuffle=False, max_consecutive_skips=5)[0].key == "sa_000004"
    with pytest.raises(ShardError, match=r"4 samples in a row cannot be used \(no_mask 4 x\)"):
        make([tmp_path / "a.tar"], shuffle=False, max_consecutive_skips=4)[0]


def test_a_set_of_only_unusable_samples_ends(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(0, num_masks=0)])
    with pytest.raises(ShardError, match="1 samples in a row"):
        make([tmp_path / "a.tar"])[0]


def test_no_image_at_all(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(ConfigError, match="the 1 shards hold no image: nothing to train on"):
        make([tmp_path / "a.tar"])


def test_positions_are_dealt_out_to_ranks() -> None:
    ranks = [list(islice(DistributedPositionSampler(start=10, num_positions=None, rank=r, world_size=3), 4)) for r in range(3)]
    assert ranks == [[10, 13, 16, 19], [11, 14, 17, 20], [12, 15, 18, 21]]
    finite = [list(DistributedPositionSampler(start=0, num_positions=5, rank=r, world_size=2)) for r in range(2)]
    assert finite == [[0, 2, 4], [1, 3]]
