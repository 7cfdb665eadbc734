"""A cycle as a chain of jobs on a real cluster: one after the other, and a chain that was cut goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PATIENCE_S = 600
STAGE = "stages=[{stage:assisted_manual,first_image:0,num_images:4}]"
ACTIONS = ["corpus", *(f"1_assisted_manual/{what}" for what in ("annotate", "train", "evaluate")), "report"]
SLURM = ["runner=slurm", "runner.partition=low", "runner.sbatch.all.cpus-per-task=1", "runner.sbatch.all.time=10"]


def turn(cluster: Any, folder: Path, *options: str) -> str:
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "data_engine.cycle", "experiment=smoke", STAGE, "run_dir=smoke", *options]
    return str(cluster.ask(*command, cwd=folder, check=True, **environment))


def jobs(folder: Path) -> dict[str, str]:
    """Name of an action -> number of its job."""
    return {name: number for number, name in json.loads((folder / "smoke" / "jobs.json").read_bytes()).items()}


def logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted((folder / "smoke" / "jobs").glob("*.log")))


def left(cluster: Any) -> list[str]:
    return str(cluster.ask("squeue", "--noheader", "--format", "%A")).split()


@pytest.mark.timeout(1500)
def test_a_chain_of_jobs_that_was_cut_goes_on_to_its_end(cluster: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    said = turn(cluster, there, *SLURM)
    assert "jobs submitted" in said
    assert list(jobs(there)) == ACTIONS
    cluster.ask("scancel", jobs(there)["1_assisted_manual/train"], check=True)
    assert "are in the queue, nothing was submitted" in turn(cluster, there, *SLURM)
    cluster.until(lambda: not left(cluster), PATIENCE_S, f"end of the chain: {logs(there)}")
    done = there / "smoke" / "1_assisted_manual"
    assert (done / "shards" / "ledger.json").is_file(), logs(there)
    assert not (done / "train").exists(), "it was cancelled, and so were those that wait for it"
    said = turn(cluster, there, *SLURM)
    assert "jobs submitted" in said
    assert list(jobs(there)) == ACTIONS[2:]
    cluster.until(lambda: not left(cluster), PATIENCE_S, f"end of the chain: {logs(there)}")
    assert (there / "smoke" / "report.json").is_file(), logs(there)
    (entry,) = json.loads((there / "smoke" / "promoted.json").read_bytes())["history"]
    assert (entry["step"], entry["promoted"]) == ("1_assisted_manual", True)
    assert (there / "smoke" / "model.pt").read_bytes() == (done / "train" / "model.pt").read_bytes()
    assert "1 device" in logs(there), "the training found itself alone in its job"
    clock = json.loads((there / "smoke" / "clock.json").read_bytes())
    assert clock["1_assisted_manual: train"]["devices"] == 1
    assert clock["1_assisted_manual: train"]["seconds"] > 1
