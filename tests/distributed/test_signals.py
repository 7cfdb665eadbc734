"""The command over two processes that it starts itself, told to leave as a cluster tells it: by a signal to every process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import SMALL, rows, run_alone, weights

pytestmark = pytest.mark.slow

STEPS = 30


def overrides(shards: Path, run_dir: Path, devices: int) -> list[str]:
    more = [f"trainer.devices={devices}", f"trainer.max_steps={STEPS}", "data.num_workers=1", "checkpoint_every_n_steps=1000"]
    return [*SMALL, *more, f"data.shards={shards}", f"run_dir={run_dir}"]


@pytest.mark.parametrize(("devices", "number"), [(2, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_told_to_leave_it_writes_its_checkpoint_and_goes_on_with_the_next_image(
    devices: int, number: signal.Signals, shards: Path, tmp_path: Path
) -> None:
    """Loader processes get the signal too, and must not take their parent along."""
    command = [sys.executable, "-m", "sam_train.train", *overrides(shards, tmp_path, devices)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 100
        while process.poll() is None and len(steps(tmp_path)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=100)[0]
    assert process.returncode == os.EX_TEMPFAIL, said
    left_at = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= left_at < STEPS
    assert steps(tmp_path) == [str(step) for step in range(left_at)], "each step has its row"
    assert f"asked to leave after step {left_at}" in said
    run_alone(overrides(shards, tmp_path, 1))
    assert steps(tmp_path) == [str(step) for step in range(STEPS)]
    if devices == 1:
        run_alone(overrides(shards, tmp_path / "unbroken", 1))
        expected, found = weights(tmp_path / "unbroken"), weights(tmp_path)
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        assert rows(tmp_path / "unbroken") == rows(tmp_path)


def steps(run_dir: Path) -> list[str]:
    return [row["step"] for row in rows(run_dir)] if (run_dir / "csv" / "metrics.csv").is_file() else []
