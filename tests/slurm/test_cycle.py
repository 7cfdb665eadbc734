"""A data-engine loop as a chain of jobs on a real cluster, and the resumption of a chain that was cancelled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TIMEOUT_S = 600
STAGE = "stages=[{stage:assisted_manual,first_image:0,num_images:4}]"
ACTIONS = ["corpus", *(f"1_assisted_manual/{kind}" for kind in ("annotate", "train", "evaluate")), "report"]
SLURM = ["runner=slurm", "runner.partition=low", "runner.sbatch.all.cpus-per-task=1", "runner.sbatch.all.time=10"]


def sam_cycle(cluster: Any, folder: Path, *options: str) -> str:
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "data_engine.cycle", "experiment=smoke", STAGE, "run_dir=smoke", *options]
    return str(cluster.run_command(*command, cwd=folder, check=True, **environment))


def jobs(folder: Path) -> dict[str, str]:
    """Return name of an action -> number of its job."""
    return {name: number for number, name in json.loads((folder / "smoke" / "jobs.json").read_bytes()).items()}


def logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted((folder / "smoke" / "jobs").glob("*.log")))


def queued_jobs(cluster: Any) -> list[str]:
    return str(cluster.run_command("squeue", "--noheader", "--format", "%A")).split()


@pytest.mark.timeout(1500)
def test_resumes_a_chain_of_jobs_that_was_cancelled(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cycle"
    printed = sam_cycle(cluster, folder, *SLURM)
    assert "jobs submitted" in printed
    assert list(jobs(folder)) == ACTIONS
    cluster.run_command("scancel", jobs(folder)["1_assisted_manual/train"], check=True)
    assert "are in the queue, nothing was submitted" in sam_cycle(cluster, folder, *SLURM)
    cluster.wait_until(lambda: not queued_jobs(cluster), TIMEOUT_S, f"end of the chain: {logs(folder)}")
    done = folder / "smoke" / "1_assisted_manual"
    assert (done / "shards" / "ledger.json").is_file(), logs(folder)
    assert not (done / "train").exists(), "the training was cancelled, and so were the jobs that wait for it"
    printed = sam_cycle(cluster, folder, *SLURM)
    assert "jobs submitted" in printed
    assert list(jobs(folder)) == ACTIONS[2:]
    cluster.wait_until(lambda: not queued_jobs(cluster), TIMEOUT_S, f"end of the chain: {logs(folder)}")
    assert (folder / "smoke" / "report.json").is_file(), logs(folder)
    (entry,) = json.loads((folder / "smoke" / "promoted.json").read_bytes())["history"]
    assert (entry["step"], entry["promoted"]) == ("1_assisted_manual", True)
    assert (folder / "smoke" / "model.pt").read_bytes() == (done / "train" / "model.pt").read_bytes()
    assert "1 device" in logs(folder), "the training uses the one device of its job"
    clock = json.loads((folder / "smoke" / "clock.json").read_bytes())
    assert clock["1_assisted_manual: train"]["devices"] == 1
    assert clock["1_assisted_manual: train"]["seconds"] > 1
