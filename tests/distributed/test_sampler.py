"""Two processes together see the images of one; a killed and resumed run is bit-identical to an uninterrupted one."""

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
from dist_runner import SMALL, STEPS, RankProcesses, rows, weights

from sam_train.data.datamodule import ShardDataModule

pytestmark = pytest.mark.slow

IMAGES_PER_STEP, SECONDS = 4, 300
Seen = list[list[Any]]


def overrides(shards: Path, run_dir: Path, num_workers: int) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"run_dir={run_dir}", f"data.num_workers={num_workers}"]


@pytest.fixture(scope="module")
def order(shards: Path) -> list[str]:
    """Keys by position, from a loader with one process and one device."""
    loader = ShardDataModule(shards=str(shards), image_size=32, images_per_step=IMAGES_PER_STEP)
    return [loader.train_set.entry(position).key for position in range(STEPS * IMAGES_PER_STEP)]


@pytest.fixture(scope="module")
def uninterrupted(two_ranks: RankProcesses, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """Run folder of two uninterrupted ranks without loader processes, and the images that each of them saw."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    results = two_ranks.run(overrides(shards, run_dir, 0), record_keys=True)
    return run_dir, [result["seen"] for result in results]


def keys_of_rank(order: list[str], rank: int, step: int) -> list[str]:
    return order[step * IMAGES_PER_STEP : (step + 1) * IMAGES_PER_STEP][rank::2]


def check_equal(found: Path, expected: Path) -> None:
    assert rows(found) == rows(expected), "losses must be bit-identical"
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert json.loads((found / "metrics.json").read_bytes())["steps"] == STEPS


def test_ranks_share_the_order_of_a_single_process(order: list[str], uninterrupted: tuple[Path, list[Seen]]) -> None:
    for rank, seen in enumerate(uninterrupted[1]):
        assert seen == [[step, keys_of_rank(order, rank, step)] for step in range(STEPS)]
    for epoch in range(STEPS * IMAGES_PER_STEP // 7):
        assert len(set(order[7 * epoch : 7 * (epoch + 1)])) == 7, "each image once per epoch"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_in_the_middle_of_an_epoch(
    num_workers: int,
    two_ranks: RankProcesses,
    shards: Path,
    order: list[str],
    uninterrupted: tuple[Path, list[Seen]],
    tmp_path: Path,
) -> None:
    """Killed in step 3, one step after the checkpoint: each rank repeats the steps since then with its own images."""
    options = overrides(shards, tmp_path, num_workers)
    before = two_ranks.run(options, kill_at=3, record_keys=True)
    after = two_ranks.run(options, record_keys=True)
    for rank in range(2):
        assert before[rank]["seen"] == uninterrupted[1][rank][:4]
        assert after[rank]["seen"] == uninterrupted[1][rank][2:], "resumed after two steps with the next image"
        assert after[rank]["seen"][0] == [2, keys_of_rank(order, rank, 2)]
    check_equal(tmp_path, uninterrupted[0])


@pytest.fixture
def ranks_to_kill() -> Iterator[RankProcesses]:
    """Two rank processes that the test kills."""
    ranks = RankProcesses(2)
    yield ranks
    for process in ranks.processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def test_resumes_after_sigkill_with_two_loader_processes_per_rank(
    ranks_to_kill: RankProcesses, two_ranks: RankProcesses, shards: Path, uninterrupted: tuple[Path, list[Seen]], tmp_path: Path
) -> None:
    options = overrides(shards, tmp_path, 2)
    ranks_to_kill.submit(options)
    wait_until((tmp_path / "checkpoints" / "last.ckpt").is_file, "no checkpoint was written")
    loaders = [child for process in ranks_to_kill.processes for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(loaders) >= 4, "two per rank"
    for process in ranks_to_kill.processes:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "metrics.json").exists()
    wait_until(lambda: not any(is_alive(loader) for loader in loaders), "loader processes outlived their parents")
    two_ranks.run(options)
    log, expected = rows(tmp_path), rows(uninterrupted[0])
    assert [row for row in log if row not in expected] == []
    assert len(log) >= STEPS - 1, "a kill between a checkpoint and the row of its step loses that row"
    assert log[-1] == expected[-1]
    ours, theirs = weights(tmp_path), weights(uninterrupted[0])
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Any, message: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.005)
