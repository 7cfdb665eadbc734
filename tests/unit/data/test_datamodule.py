"""The data module feeds endless training batches that go on where a checkpoint was, and each validation image once."""

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


def make(shard: Path, **values: Any) -> ShardDataModule:
    return ShardDataModule(**{"shards": str(shard), "image_size": 32, "images_per_step": 2, "flip": True} | values)


def steps(module: ShardDataModule, num: int) -> list[Batch]:
    return [packed.unpack() for packed in islice(iter(module.train_dataloader()), num)]


def validation(module: ShardDataModule) -> list[Batch]:
    return [packed.unpack() for packed in module.val_dataloader()]


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and torch.equal(one.images, other.images) and torch.equal(one.target_masks, other.target_masks)


def at_step(module: ShardDataModule, step: int, *, rank: int = 0, world_size: int = 1) -> ShardDataModule:
    """As a trainer at `step` sees it."""
    module.trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return module


def test_going_on_after_a_checkpoint_gives_the_batches_of_the_unbroken_run(shard: Path) -> None:
    unbroken = steps(make(shard), 9)
    state = at_step(make(shard), 4).state_dict()
    assert state == {"position": 8}
    resumed = make(shard)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for one, other in zip(steps(resumed, 5), unbroken[4:], strict=True):
        assert same(one, other)


def test_a_checkpoint_of_a_resumed_run_counts_from_the_start(shard: Path) -> None:
    """Lightning's global step goes on, so the position must not be added twice."""
    resumed = make(shard)
    resumed.load_state_dict({"position": 8})
    assert at_step(resumed, 6).state_dict() == {"position": 12}


def test_ranks_share_the_order_and_their_number_may_change(shard: Path) -> None:
    """Each step is the same stretch of the order, on however many devices."""
    alone = [key for batch in steps(make(shard), 4) for key in batch.keys]
    ranks = [steps(at_step(make(shard), 0, rank=r, world_size=2), 4) for r in range(2)]
    assert [k for pair in zip(*ranks, strict=True) for batch in pair for k in batch.keys] == alone
    assert at_step(make(shard), 2, world_size=2).state_dict() == {"position": 4}


def test_too_few_images_for_the_devices(shard: Path) -> None:
    module = at_step(make(shard, images_per_step=6, val_shards=str(shard)), 0, world_size=6)
    for loader in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(ConfigError, match="5 images are too few for 6 devices"):
            loader()


def test_workers_make_the_same_batches(shard: Path) -> None:
    own, theirs = steps(make(shard), 4), steps(make(shard, num_workers=1), 4)
    assert all(same(a, b) for a, b in zip(own, theirs, strict=True))


def test_validation_is_every_image_once_without_augmentation(shard: Path) -> None:
    module = make(shard, val_shards=str(shard), flip=True, quarter_turns=True, scale_jitter=(0.5, 2.0))
    once, again = validation(module), validation(module)
    assert [k for b in once for k in b.keys] == [f"sa_{i:06d}" for i in range(5)]
    assert [len(b.keys) for b in once] == [2, 2, 1]
    assert all(same(a, b) for a, b in zip(once, again, strict=True))
    plain = validation(make(shard, val_shards=str(shard), flip=False))
    assert all(same(a, b) for a, b in zip(once, plain, strict=True))


def test_validation_leaves_out_what_it_cannot_use(
    shard: Path, tmp_path: Path, sample: Callable[..., tuple[ImageRecord, bytes]]
) -> None:
    write_shard(tmp_path / "val.tar", [sample(0, num_masks=0), sample(1), sample(2)])
    (batch, last) = validation(make(shard, val_shards=str(tmp_path / "val.tar"), num_workers=0))
    assert (batch.keys, batch.skipped) == (("sa_000000", "sa_000001"), ("no_mask",))
    assert set(batch.image_index.tolist()) == {1}
    assert (last.keys, last.skipped) == (("sa_000002",), ())


def test_no_validation_shards_no_loader(shard: Path) -> None:
    assert make(shard).val_dataloader() == []


@pytest.mark.parametrize("shards", ["", []])
def test_no_shards(shards: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.shards names nothing"):
        ShardDataModule(shards=shards, image_size=32)
