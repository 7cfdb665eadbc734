"""The command over two processes that it starts itself, told to leave as a cluster tells it: by a signal to every process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from dist_runner import SMALL, forked, rows, run_forked, weights

pytestmark = pytest.mark.slow

STEPS = 16


def overrides(shards: Path, run_dir: Path, devices: int) -> list[str]:
    more = [f"trainer.devices={devices}", f"trainer.max_steps={STEPS}", "data.num_workers=1", "checkpoint_every_n_steps=1000"]
    return [*SMALL, *more, f"data.shards={shards}", f"run_dir={run_dir}"]


@pytest.mark.parametrize(("devices", "number"), [(2, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_told_to_leave_it_writes_its_checkpoint_and_goes_on_with_the_next_image(
    devices: int, number: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    """Loader processes get the signal too, and must not take their parent along."""
    said = tmp_path / "said"
    process = (started if devices > 1 else forked)(overrides(shards, tmp_path, devices), said)
    deadline = time.monotonic() + 200
    while len(steps(tmp_path)) < 3:
        assert exit_code(process) is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid
    os.killpg(process.pid, number)
    while (code := exit_code(process)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert code == os.EX_TEMPFAIL, said.read_text()
    left_at = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= left_at < STEPS
    assert steps(tmp_path) == [str(step) for step in range(left_at)], "each step has its row"
    assert f"preempted after step {left_at}" in said.read_text()
    run_forked(overrides(shards, tmp_path, 1), said)
    assert steps(tmp_path) == [str(step) for step in range(STEPS)]
    if devices == 1:
        run_forked(overrides(shards, tmp_path / "unbroken", 1), said)
        expected, found = weights(tmp_path / "unbroken"), weights(tmp_path)
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        assert rows(tmp_path / "unbroken") == rows(tmp_path)


def started(options: list[str], said: Path) -> subprocess.Popen[bytes]:
    """A command of its own: it starts the second process by its own name, which a forked one does not have."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with said.open("wb") as stream:
        command = [sys.executable, "-m", "sam_train.train", *options]
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def exit_code(process: subprocess.Popen[bytes] | BaseProcess) -> int | None:
    """None while it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def steps(run_dir: Path) -> list[str]:
    return [row["step"] for row in rows(run_dir)] if (run_dir / "csv" / "metrics.csv").is_file() else []
