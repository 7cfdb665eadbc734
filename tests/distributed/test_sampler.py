"""Two processes together see the images of one; killed and gone on, they end as a pair that nobody disturbed, to the bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from dist_runner import SMALL, STEPS, Ranks, rows, weights

from sam_train.data.datamodule import ShardDataModule

pytestmark = pytest.mark.slow

IMAGES_PER_STEP, SECONDS = 4, 300
Seen = list[list[Any]]


def overrides(shards: Path, run_dir: Path, num_workers: int) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"run_dir={run_dir}", f"data.num_workers={num_workers}"]


@pytest.fixture(scope="module")
def order(shards: Path) -> list[str]:
    """Keys by position, as a loader without processes and devices has them."""
    loader = ShardDataModule(shards=str(shards), image_size=32, images_per_step=IMAGES_PER_STEP)
    return [loader.train_set.entry(position).key for position in range(STEPS * IMAGES_PER_STEP)]


@pytest.fixture(scope="module")
def unbroken(two: Ranks, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """Run folder of a pair that nobody disturbed, without loader processes, and what each of the two saw."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    answers = two.run(overrides(shards, run_dir, 0), tell_keys=True)
    return run_dir, [answer["seen"] for answer in answers]


def dealt(order: list[str], rank: int, step: int) -> list[str]:
    return order[step * IMAGES_PER_STEP : (step + 1) * IMAGES_PER_STEP][rank::2]


def check_equal(found: Path, expected: Path) -> None:
    assert rows(found) == rows(expected), "each loss, to its last digit"
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert json.loads((found / "metrics.json").read_bytes())["steps"] == STEPS


def test_the_order_of_one_is_dealt_to_two(order: list[str], unbroken: tuple[Path, list[Seen]]) -> None:
    for rank, seen in enumerate(unbroken[1]):
        assert seen == [[step, dealt(order, rank, step)] for step in range(STEPS)]
    for epoch in range(STEPS * IMAGES_PER_STEP // 7):
        assert len(set(order[7 * epoch : 7 * (epoch + 1)])) == 7, "each image once before one comes again"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_in_the_middle_of_an_epoch(
    num_workers: int, two: Ranks, shards: Path, order: list[str], unbroken: tuple[Path, list[Seen]], tmp_path: Path
) -> None:
    """In step 3, a step after the checkpoint: what follows it is made again, by each process from its own images."""
    options = overrides(shards, tmp_path, num_workers)
    before = two.run(options, kill_at=3, tell_keys=True)
    after = two.run(options, tell_keys=True)
    for rank in range(2):
        assert before[rank]["seen"] == unbroken[1][rank][:4]
        assert after[rank]["seen"] == unbroken[1][rank][2:], "from the checkpoint after two steps, and no other image"
        assert after[rank]["seen"][0] == [2, dealt(order, rank, 2)]
    check_equal(tmp_path, unbroken[0])


@pytest.fixture
def victims() -> Iterator[Ranks]:
    """Two processes that do not live long."""
    ranks = Ranks(2)
    yield ranks
    for process in ranks.processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def test_kill_9_with_two_loader_processes_each(
    victims: Ranks, two: Ranks, shards: Path, unbroken: tuple[Path, list[Seen]], tmp_path: Path
) -> None:
    options = overrides(shards, tmp_path, 2)
    victims.begin(options)
    wait_until((tmp_path / "checkpoints" / "last.ckpt").is_file, "no checkpoint was written")
    loaders = [child for process in victims.processes for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(loaders) >= 4, "two for each"
    for process in victims.processes:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "metrics.json").exists()
    wait_until(lambda: not any(is_alive(loader) for loader in loaders), "loader processes outlived the processes that asked them")
    two.run(options)
    log, expected = rows(tmp_path), rows(unbroken[0])
    assert [row for row in log if row not in expected] == []
    assert len(log) >= STEPS - 1, "a kill between a checkpoint and the row of its step loses that row"
    assert log[-1] == expected[-1]
    ours, theirs = weights(tmp_path), weights(unbroken[0])
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(is_so: Any, otherwise: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)
