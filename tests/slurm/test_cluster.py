"""The job scripts on a SLURM cluster of two nodes: training on both, preemption by a job of higher priority, resumption."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_sample
from dist_runner import SMALL, RankProcesses, rows, run_forked, weights

from sam_train.shards import write_shard

pytestmark = pytest.mark.slow

STEPS = 40
STEPS_OF_TWO = 80  # for jobs that may not start together: the first must still run when the second begins
TIMEOUT_S = 400
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
    """Variables for jobs: the nodes' names are known to SLURM only, and sam-train is installed beside this Python."""
    bin_dir = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join([bin_dir, os.environ["PATH"]]),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def num_steps(run_dir: Path) -> int:
    return len(rows(run_dir)) if (run_dir / "csv" / "metrics.csv").is_file() else 0


def check_same(found: Path, expected: Path, steps: int = STEPS) -> None:
    assert [row["step"] for row in rows(found)] == [str(step) for step in range(steps)]
    assert rows(found) == rows(expected)
    ours, theirs = weights(found), weights(expected)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


class Job:
    """A training job on both nodes in its own folder."""

    def __init__(self, cluster: Any, repo_root: Path, folder: Path, options: list[str]) -> None:
        self.cluster, self.run_dir = cluster, folder / "runs" / "mine"
        script = str(repo_root / "slurm" / "train.sbatch")
        arguments = ["--partition=low", *TWO_NODES, script, "name=mine", *options]
        self.number = cluster.submit(*arguments, cwd=folder, **environment())
        self.log = folder / f"sam-train-{self.number}.log"

    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def steps(self) -> int:
        return num_steps(self.run_dir)

    def wait(self) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL")
        self.cluster.wait_until(lambda: self.cluster.state(self.number) in ended, TIMEOUT_S, f"end of the job: {self.output()}")
        assert self.cluster.state(self.number) == "COMPLETED", self.output()


def test_preempted_job_on_two_nodes_ends_as_two_uninterrupted_processes(
    cluster: Any, two_ranks: RankProcesses, options: list[str], repo_root: Path, tmp_path: Path
) -> None:
    job = Job(cluster, repo_root, tmp_path, options)
    cluster.wait_until(lambda: job.steps() > 5 or cluster.state(job.number) == "FAILED", TIMEOUT_S, f"steps: {job.output()}")
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    cluster.wait_until(lambda: cluster.state(urgent) == "COMPLETED", TIMEOUT_S, f"urgent job: {job.output()}")
    assert 5 < job.steps() < STEPS, job.output()
    stopped_at = torch.load(job.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert stopped_at == job.steps(), "the checkpoint must be that of the last step, not a regular one"
    two_ranks.run([*options, f"run_dir={tmp_path / 'uninterrupted'}"])  # while the job is in the queue
    job.wait()
    assert "2 devices with 2 each" in job.output()
    assert f"preempted after step {stopped_at}" in job.output()
    assert f"resuming from {Path('runs/mine/checkpoints/last.ckpt')}" in job.output()
    check_same(job.run_dir, tmp_path / "uninterrupted")


def test_preempted_sweep_jobs_resume(cluster: Any, shards: Path, options: list[str], tmp_path: Path) -> None:
    """Both jobs of a sweep are preempted, requeue themselves and end bit-identical to uninterrupted runs; the command waits."""
    queue = {"partition": "low", "cpus_per_task": 1, "timeout_min": 10}
    command = [str(Path(sys.executable).with_name("sam-train")), "-m", "hydra/launcher=submitit_slurm"]
    command += [f"hydra.launcher.{key}={value}" for key, value in queue.items()]
    options = [*options, f"trainer.max_steps={STEPS_OF_TWO}", "data.num_workers=0"]
    command += [*options, "seed=0,1", "name=sweep_${seed}"]
    folders = [tmp_path / "runs" / f"sweep_{seed}" for seed in (0, 1)]
    with (
        (tmp_path / "output").open("w+") as output,
        subprocess.Popen(command, cwd=tmp_path, env={**cluster.env, **environment()}, stdout=output, stderr=output) as sweep,
    ):
        cluster.wait_until(
            lambda: all(num_steps(run) > 5 for run in folders) or sweep.poll() is not None, TIMEOUT_S, "steps of both"
        )
        urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
        cluster.wait_until(lambda: cluster.state(urgent) == "COMPLETED", TIMEOUT_S, "urgent job")
        stopped_at = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for run in folders]
        assert all(5 < step < STEPS_OF_TWO for step in stopped_at), stopped_at
        cluster.wait_until(lambda: sweep.poll() is not None, TIMEOUT_S, "end of the sweep")
    assert sweep.returncode == 0, (tmp_path / "output").read_text()
    for seed, folder in enumerate(folders):
        uninterrupted = [*options, f"seed={seed}", f"run_dir={tmp_path / 'uninterrupted' / str(seed)}"]
        run_forked(uninterrupted, tmp_path / "output")
        check_same(folder, tmp_path / "uninterrupted" / str(seed), STEPS_OF_TWO)
    assert rows(folders[0]) != rows(folders[1])
