"""The job scripts on a real cluster of two nodes: training over both, taken away by a job of higher priority and gone on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_sample
from ranks import SMALL, rows, weights

from sam_train.shards import write_shard

pytestmark = pytest.mark.slow

STEPS = 60
FLAGS = ["--account=", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", *FLAGS]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(i, num_masks=1 + i % 3) for i in range(7)])
    return folder


@pytest.fixture(scope="module")
def options(shards: Path) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"trainer.max_steps={STEPS}", "checkpoint_every_n_steps=1000", "data.num_workers=1"]


def environment() -> dict[str, str]:
    """The nodes have names that only SLURM knows, and sam-train lies beside this Python."""
    here = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join([here, os.environ["PATH"]]),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


class Job:
    """A training job over both nodes in a folder of its own."""

    def __init__(self, cluster: Any, repo_root: Path, folder: Path, options: list[str]) -> None:
        self.cluster, self.run_dir = cluster, folder / "runs" / "mine"
        script = str(repo_root / "slurm" / "train.sbatch")
        arguments = ["--partition=low", *TWO_NODES, script, "name=mine", *options]
        self.number = cluster.submit(*arguments, cwd=folder, **environment())
        self.log = folder / f"sam-train-{self.number}.log"

    def told(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def steps(self) -> int:
        return len(rows(self.run_dir)) if (self.run_dir / "csv" / "metrics.csv").is_file() else 0

    def wait(self) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL")
        self.cluster.until(lambda: self.cluster.state(self.number) in ended, 120, f"end of the job: {self.told()}")
        assert self.cluster.state(self.number) == "COMPLETED", self.told()


def test_two_nodes_train_and_a_preempted_job_ends_as_an_unbroken_one(
    cluster: Any, options: list[str], repo_root: Path, tmp_path: Path
) -> None:
    for name in ("unbroken", "preempted"):
        (tmp_path / name).mkdir()
    unbroken = Job(cluster, repo_root, tmp_path / "unbroken", options)
    unbroken.wait()
    job = Job(cluster, repo_root, tmp_path / "preempted", options)
    cluster.until(lambda: job.steps() > 5 or cluster.state(job.number) == "FAILED", 90, f"steps: {job.told()}")
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    cluster.until(lambda: cluster.state(urgent) == "COMPLETED", 60, f"urgent job: {job.told()}")
    assert 5 < job.steps() < STEPS, job.told()
    left_at = torch.load(job.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert left_at == job.steps(), "the checkpoint is that of the last step, and not one of every so many"
    job.wait()
    assert "2 devices with 2 each" in job.told()
    assert f"asked to leave after step {left_at}" in job.told()
    assert f"going on from {Path('runs/mine/checkpoints/last.ckpt')}" in job.told()
    assert rows(job.run_dir) == rows(unbroken.run_dir)
    assert [row["step"] for row in rows(job.run_dir)] == [str(step) for step in range(STEPS)]
    expected, found = weights(unbroken.run_dir), weights(job.run_dir)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_an_array_of_the_engine_makes_the_shards_of_its_parts(
    cluster: Any, shards: Path, repo_root: Path, tmp_path: Path
) -> None:
    script = str(repo_root / "slurm" / "engine_array.sbatch")
    flags = ["--partition=low", "--array=0-1", "--account=", "--gpus=0", "--cpus-per-task=1", "--time=10"]
    work = ["stage=assisted_manual", f"source={shards}", f"out={tmp_path / 'made'}", "images_per_shard=2", "threads=1"]
    job = cluster.submit(*flags, script, *work, cwd=tmp_path, IMAGES_PER_TASK="4", **environment())
    logs = lambda: "".join(path.read_text() for path in tmp_path.glob("*.log"))  # noqa: E731
    cluster.until(lambda: not cluster.ask("squeue", "-h", "-j", job).strip(), 120, f"end of the array: {logs()}")
    made = sorted(str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*.tar"))
    assert made == [f"part_0000{part}/sa_00000{shard}.tar" for part in (0, 1) for shard in (0, 1)], logs()


def test_a_sweep_is_a_job_for_each_value_and_a_run_folder_by_name(cluster: Any, shards: Path, tmp_path: Path) -> None:
    queue = {"partition": "low", "cpus_per_task": 1, "timeout_min": 10}
    command = [str(Path(sys.executable).with_name("sam-train")), "-m", "hydra/launcher=submitit_slurm"]
    command += [f"hydra.launcher.{key}={value}" for key, value in queue.items()]
    command += [*SMALL, f"data.shards={shards}", "trainer.max_steps=2", "seed=0,1", "name=sweep_${seed}"]
    cluster.ask(*command, cwd=tmp_path, check=True, **environment())
    seeds = {name: json.loads((tmp_path / "runs" / name / "metrics.json").read_bytes()) for name in ("sweep_0", "sweep_1")}
    assert [metrics["steps"] for metrics in seeds.values()] == [2, 2]
    assert seeds["sweep_0"]["train/loss"] != seeds["sweep_1"]["train/loss"]
