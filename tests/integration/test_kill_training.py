"""Training runs that SIGKILL or Ctrl-C ends at a random step resume to bit-identical losses and weights."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
from conftest import make_sample
from dist_runner import SMALL, rows, start_forked, weights

from sam_train.shards import write_shard

pytestmark = pytest.mark.slow

STEPS, NUM_RUNS = 12, 10
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}


def start_training(shards: Path, run_dir: Path, *more: str) -> BaseProcess:
    overrides = [*SMALL, f"data.shards={shards}", f"run_dir={run_dir}", f"trainer.max_steps={STEPS}", "data.images_per_step=2"]
    return start_forked([*overrides, *more], run_dir.with_suffix(".output"))


def wait_for_success(process: BaseProcess, run_dir: Path) -> None:
    process.join()
    assert process.exitcode == 0, run_dir.with_suffix(".output").read_text()


def stop_after(steps: int, process: BaseProcess, run_dir: Path, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal after `steps` steps, or after the first step of this process if there have been more."""
    deadline = time.monotonic() + 300
    steps = max(steps, num_rows(run_dir) + 1)
    while num_rows(run_dir) < steps:
        assert process.is_alive(), f"the run ended before step {steps}: {run_dir.with_suffix('.output').read_text()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == EXIT_CODES[number], run_dir.with_suffix(".output").read_text()


def num_rows(run_dir: Path) -> int:
    path = run_dir / "csv" / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def test_resumes_after_sigkill_and_ctrl_c_at_random_steps(tmp_path: Path) -> None:
    """Each run is killed and then interrupted, or the reverse, before it is completed."""
    shards = tmp_path / "shards"
    write_shard(shards / "sa_000000.tar", [make_sample(index, num_masks=1 + index % 2) for index in range(5)])
    wait_for_success(start_training(shards, tmp_path / "unbroken"), tmp_path / "unbroken")
    expected, log = weights(tmp_path / "unbroken"), rows(tmp_path / "unbroken")
    assert len(log) == STEPS
    seed = secrets.randbits(32)
    draw = random.Random(seed)  # noqa: S311 # not a secret
    for index in range(NUM_RUNS):
        run_dir, steps = tmp_path / str(index), sorted(draw.sample(range(1, STEPS - 4), 2))
        signals = draw.sample([*EXIT_CODES], 2)
        for step, number in zip(steps, signals, strict=True):
            stop_after(step, start_training(shards, run_dir), run_dir, number)
            assert not (run_dir / "metrics.json").exists()
        wait_for_success(start_training(shards, run_dir), run_dir)
        message = f"{[number.name for number in signals]} after steps {steps}, seed {seed}"
        found = weights(run_dir)
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], message
        assert rows(run_dir)[-1] == log[-1], message
        # A kill between a checkpoint and the row of its step loses that row.
        assert [row for row in rows(run_dir) if row not in log] == [], message
        assert len(rows(run_dir)) >= STEPS - 1, message


def test_resumes_after_sigkill_with_two_loader_processes(tmp_path: Path) -> None:
    """Loader processes end with their parent, and their prefetched samples do not change the result."""
    shards = tmp_path / "shards"
    write_shard(shards / "sa_000000.tar", [make_sample(index, num_masks=1 + index % 2) for index in range(5)])
    wait_for_success(start_training(shards, tmp_path / "unbroken"), tmp_path / "unbroken")
    killed = start_training(shards, tmp_path / "killed", "data.num_workers=2")
    stop_after(5, killed, tmp_path / "killed")
    assert killed.pid
    deadline = time.monotonic() + 60
    while processes_of(killed.pid):
        assert time.monotonic() < deadline, "loader processes outlived their parent"
        time.sleep(0.05)
    wait_for_success(start_training(shards, tmp_path / "killed", "data.num_workers=2"), tmp_path / "killed")
    expected, found = (weights(tmp_path / name) for name in ("unbroken", "killed"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [row for row in rows(tmp_path / "killed") if row not in rows(tmp_path / "unbroken")] == []


def processes_of(session: int) -> list[psutil.Process]:
    """Return the running processes of a session; its killed leader has been waited for."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found
