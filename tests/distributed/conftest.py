from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_sample
from dist_runner import SMALL, run_forked

from sam_train.shards import write_shard


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images with one to three masks: the mean of the processes' means differs from the mean over masks."""
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(i, num_masks=1 + i % 3) for i in range(7)])
    return folder


@pytest.fixture(scope="session")
def single_process_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a single process that trains the same steps."""
    run_dir = tmp_path_factory.mktemp("alone")
    run_forked([*SMALL, f"data.shards={shards}", f"data.val_shards={shards}", f"run_dir={run_dir}"], run_dir / "output")
    return run_dir
