"""Preemption of `sam-train` by a signal to every process, as a cluster sends it, with one and with two processes."""

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
from dist_runner import SMALL, rows, run_forked, start_forked, weights

pytestmark = pytest.mark.slow

STEPS = 16


def overrides(shards: Path, run_dir: Path, devices: int) -> list[str]:
    more = [f"trainer.devices={devices}", f"trainer.max_steps={STEPS}", "data.num_workers=1", "checkpoint_every_n_steps=1000"]
    return [*SMALL, *more, f"data.shards={shards}", f"run_dir={run_dir}"]


@pytest.mark.parametrize(("devices", "number"), [(2, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_preempted_run_writes_a_checkpoint_and_resumes_with_the_next_image(
    devices: int, number: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    """Loader processes receive the signal too and must not end their parent."""
    output_path = tmp_path / "output"
    process = (start_command if devices > 1 else start_forked)(overrides(shards, tmp_path, devices), output_path)
    deadline = time.monotonic() + 200
    while len(steps(tmp_path)) < 3:
        assert exit_code(process) is None, output_path.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid
    os.killpg(process.pid, number)
    while (code := exit_code(process)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert code == os.EX_TEMPFAIL, output_path.read_text()
    stopped_at = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= stopped_at < STEPS
    assert steps(tmp_path) == [str(step) for step in range(stopped_at)], "each step has a row"
    assert f"preempted after step {stopped_at}" in output_path.read_text()
    run_forked(overrides(shards, tmp_path, 1), output_path)
    assert steps(tmp_path) == [str(step) for step in range(STEPS)]
    if devices == 1:
        run_forked(overrides(shards, tmp_path / "unbroken", 1), output_path)
        expected, found = weights(tmp_path / "unbroken"), weights(tmp_path)
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        assert rows(tmp_path / "unbroken") == rows(tmp_path)


def start_command(options: list[str], output_path: Path) -> subprocess.Popen[bytes]:
    """Start a new command: it starts its second process by its program name, which a forked process does not have."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with output_path.open("wb") as stream:
        command = [sys.executable, "-m", "sam_train.train", *options]
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def exit_code(process: subprocess.Popen[bytes] | BaseProcess) -> int | None:
    """Return the exit code, or None while the process runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def steps(run_dir: Path) -> list[str]:
    return [row["step"] for row in rows(run_dir)] if (run_dir / "csv" / "metrics.csv").is_file() else []
