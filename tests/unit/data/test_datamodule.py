"""Tests that training batches are endless and resume at the checkpoint, and that validation yields each image once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards import write_shard
from sam_train.structures import Batch


@pytest.fixture
def shard(tmp_path: Path, sample: Callable[..., tuple[ImageRecord, bytes]]) -> Path:
    write_shard(tmp_path / "five.tar", [sample(i) for i in range(5)])
    return tmp_path / "five.tar"


def make_module(shard: Path, **values: Any) -> ShardDataModule:
    return ShardDataModule(**{"shards": str(shard), "image_size": 32, "images_per_step": 2, "flip": True} | values)


def training_batches(module: ShardDataModule, num: int) -> list[Batch]:
    return [packed.unpack() for packed in islice(iter(module.train_dataloader()), num)]


def validation_batches(module: ShardDataModule) -> list[Batch]:
    return [packed.unpack() for packed in module.val_dataloader()]


def are_equal(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and torch.equal(one.images, other.images) and torch.equal(one.target_masks, other.target_masks)


def at_step(module: ShardDataModule, step: int, *, rank: int = 0, world_size: int = 1) -> ShardDataModule:
    """Attach a trainer double at `step` to the module."""
    module.trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return module


def test_resumes_with_the_batches_of_an_uninterrupted_run(shard: Path) -> None:
    uninterrupted = training_batches(make_module(shard), 9)
    state = at_step(make_module(shard), 4).state_dict()
    assert state == {"position": 8}
    resumed = make_module(shard)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for one, other in zip(training_batches(resumed, 5), uninterrupted[4:], strict=True):
        assert are_equal(one, other)


def test_checkpoint_of_a_resumed_run_counts_from_the_start(shard: Path) -> None:
    """Lightning's global step continues, so the position must not be added twice."""
    resumed = make_module(shard)
    resumed.load_state_dict({"position": 8})
    assert at_step(resumed, 6).state_dict() == {"position": 12}


def test_each_step_has_the_same_images_on_any_number_of_ranks(shard: Path) -> None:
    """Each step is the same slice of the order, on any number of devices."""
    on_one_rank = [key for batch in training_batches(make_module(shard), 4) for key in batch.keys]
    ranks = [training_batches(at_step(make_module(shard), 0, rank=r, world_size=2), 4) for r in range(2)]
    assert [k for pair in zip(*ranks, strict=True) for batch in pair for k in batch.keys] == on_one_rank
    assert at_step(make_module(shard), 2, world_size=2).state_dict() == {"position": 4}


def test_rejects_fewer_images_than_devices(shard: Path) -> None:
    module = at_step(make_module(shard, images_per_step=6, val_shards=str(shard)), 0, world_size=6)
    for loader in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(ConfigError, match="5 images are too few for 6 devices"):
            loader()


def test_loader_processes_yield_the_same_batches(shard: Path) -> None:
    without, with_worker = training_batches(make_module(shard), 4), training_batches(make_module(shard, num_workers=1), 4)
    assert all(are_equal(a, b) for a, b in zip(without, with_worker, strict=True))


def test_validation_yields_every_image_once_without_augmentation(shard: Path) -> None:
    module = make_module(shard, val_shards=str(shard), flip=True, quarter_turns=True, scale_jitter=(0.5, 2.0))
    once, again = validation_batches(module), validation_batches(module)
    assert [k for b in once for k in b.keys] == [f"sa_{i:06d}" for i in range(5)]
    assert [len(b.keys) for b in once] == [2, 2, 1]
    assert all(are_equal(a, b) for a, b in zip(once, again, strict=True))
    plain = validation_batches(make_module(shard, val_shards=str(shard), flip=False))
    assert all(are_equal(a, b) for a, b in zip(once, plain, strict=True))


def test_validation_yields_unusable_images_without_masks(
    shard: Path, tmp_path: Path, sample: Callable[..., tuple[ImageRecord, bytes]]
) -> None:
    write_shard(tmp_path / "val.tar", [sample(0, num_masks=0), sample(1), sample(2)])
    (batch, last) = validation_batches(make_module(shard, val_shards=str(tmp_path / "val.tar"), num_workers=0))
    assert (batch.keys, batch.skipped) == (("sa_000000", "sa_000001"), ("no_mask",))
    assert set(batch.image_index.tolist()) == {1}
    assert (last.keys, last.skipped) == (("sa_000002",), ())


def test_has_no_validation_loader_without_validation_shards(shard: Path) -> None:
    assert make_module(shard).val_dataloader() == []


@pytest.mark.parametrize("shards", ["", []])
def test_rejects_empty_shards(shards: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.shards is empty"):
        ShardDataModule(shards=shards, image_size=32)
