"""Tests that the sample at a position is a pure function of (seed, position), and that unusable samples are counted."""

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
    """Write seven images in two shards."""
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    write_shard(paths[0], [sample(i) for i in range(4)])
    write_shard(paths[1], [sample(i) for i in range(4, 7)])
    return paths


def make_dataset(shards: list[Path], *, weights: list[float] | None = None, **values: Any) -> ShardDataset:
    shard_set = index_shards(shards, weights=weights, cache=None, strict=False)
    return ShardDataset(shard_set, **{"transform": TRANSFORM, "seed": 0, "shuffle": True} | values)


def keys(dataset: ShardDataset, positions: range) -> list[str]:
    return [dataset[p].key for p in positions]


ALL_KEYS = {f"sa_{i:06d}" for i in range(7)}


def test_every_epoch_is_another_permutation(shards: list[Path]) -> None:
    dataset = make_dataset(shards)
    assert len(dataset) == 7
    epochs = [keys(dataset, range(7 * e, 7 * e + 7)) for e in range(5)]
    assert all(set(epoch) == ALL_KEYS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_seeds_give_different_orders(shards: list[Path]) -> None:
    orders = {tuple(keys(make_dataset(shards, seed=seed), range(14))) for seed in range(4)}
    assert len(orders) == 4


def test_sample_depends_on_its_position_alone(shards: list[Path]) -> None:
    """Another process that reads in another order, across epochs, gets the same masks and the same flips."""
    first = make_dataset(shards)
    in_order = {p: first[p] for p in range(20)}
    for position in [19, 3, 12, 0, 18, 4, 7, 6]:
        for dataset in (first, make_dataset(shards)):
            again = dataset[position]
            assert again.key == in_order[position].key
            assert np.array_equal(again.image, in_order[position].image)
            assert np.array_equal(again.masks, in_order[position].masks)


def test_augmentation_differs_between_epochs(shards: list[Path]) -> None:
    dataset = make_dataset(shards)
    masks_by_key: dict[str, set[bytes]] = {}
    for position in range(7 * 8):
        sample = dataset[position]
        masks_by_key.setdefault(sample.key, set()).add(sample.masks.tobytes())
    assert all(len(variants) > 1 for variants in masks_by_key.values())


def test_unshuffled_order_is_that_of_the_shards(shards: list[Path]) -> None:
    assert keys(make_dataset(shards, shuffle=False), range(9)) == [f"sa_{i % 7:06d}" for i in range(9)]


def test_replaces_an_unusable_sample_by_the_next(tmp_path: Path, sample: MakeSample) -> None:
    """A record without masks, a JPEG of another size and bytes that are no JPEG are each skipped with their reason."""
    broken = [sample(0, num_masks=0), (sample(1, width=50)[0], sample(1)[1]), (sample(2)[0], b"no jpeg")]
    write_shard(tmp_path / "a.tar", [*broken, sample(3)])
    dataset = make_dataset([tmp_path / "a.tar"], shuffle=False)
    sample_in_its_place = dataset[0]
    assert sample_in_its_place.key == "sa_000003"
    assert sample_in_its_place.skipped == ("no_mask", "wrong_size", "undecodable_jpeg")
    assert dataset[3].skipped == ()


def test_validation_replaces_an_unusable_sample_by_an_empty_one(tmp_path: Path, sample: MakeSample) -> None:
    """An unusable sample is not replaced by the next one, which comes at its own position too and would count twice."""
    write_shard(tmp_path / "a.tar", [sample(0, num_masks=0), sample(1), (sample(2)[0], b"no jpeg"), sample(3)])
    dataset = make_dataset([tmp_path / "a.tar"], shuffle=False, replace_unusable=False)
    for _ in range(3):  # validation reads the same positions repeatedly
        samples = [dataset[position] for position in range(4)]
        assert [(s.key, len(s.masks), s.skipped) for s in samples] == [
            ("sa_000000", 0, ("no_mask",)),
            ("sa_000001", 1, ()),
            ("sa_000002", 0, ("undecodable_jpeg",)),
            ("sa_000003", 1, ()),
        ]
        assert [s.image.any() for s in samples] == [False, True, False, True]
        assert {(s.image.shape, s.masks.shape[1:]) for s in samples} == {((32, 32, 3), (32, 32))}


def test_too_many_empty_samples_in_a_row_raise(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(i, num_masks=0) for i in range(3)] + [sample(3)])
    path = [tmp_path / "a.tar"]
    dataset = make_dataset(path, shuffle=False, replace_unusable=False)
    for position in (0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2):  # the same samples again are not counted twice
        dataset[position]
    dataset = make_dataset(path, shuffle=False, replace_unusable=False, max_consecutive_skips=3)
    assert [dataset[position].skipped for position in (3, 0, 1)] == [(), ("no_mask",), ("no_mask",)]
    with pytest.raises(ShardError, match=r"3 samples in a row are unusable \(no_mask 3 x\)"):
        dataset[2]


def test_too_many_unusable_samples_in_a_row_raise(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(i, num_masks=0) for i in range(4)] + [sample(4)])
    assert make_dataset([tmp_path / "a.tar"], shuffle=False, max_consecutive_skips=5)[0].key == "sa_000004"
    with pytest.raises(ShardError, match=r"4 samples in a row are unusable \(no_mask 4 x\)"):
        make_dataset([tmp_path / "a.tar"], shuffle=False, max_consecutive_skips=4)[0]


def test_raises_if_all_samples_are_unusable(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(0, num_masks=0)])
    with pytest.raises(ShardError, match="1 samples in a row"):
        make_dataset([tmp_path / "a.tar"])[0]


def test_rejects_shards_without_an_image(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(ConfigError, match="the 1 shards contain no image"):
        make_dataset([tmp_path / "a.tar"])


def test_ranks_take_positions_in_turn() -> None:
    ranks = [list(islice(DistributedPositionSampler(start=10, num_positions=None, rank=r, world_size=3), 4)) for r in range(3)]
    assert ranks == [[10, 13, 16, 19], [11, 14, 17, 20], [12, 15, 18, 21]]
    finite = [list(DistributedPositionSampler(start=0, num_positions=5, rank=r, world_size=2)) for r in range(2)]
    assert finite == [[0, 2, 4], [1, 3]]
