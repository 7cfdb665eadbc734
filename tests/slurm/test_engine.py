"""The engine as a job array on a real cluster of two nodes writes byte-identical files to those of one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from data_engine.engine import run_stage
from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir
from sam_train.shards import encode_jpeg, write_shard

pytestmark = pytest.mark.slow

NUM_SLICES, IMAGES_PER_SHARD = 8, 3
EASY = [  # thresholds that random weights pass
    "stage.generator.points_per_side=3",
    "stage.generator.pred_iou_thresh=-100",
    "stage.generator.stability_score_thresh=0",
    "stage.generator.max_area_fraction=null",
    "stage.generator.min_region_area_px=0",
]
TASK = ["driver.partition=low", "driver.cpus_per_task=1", "driver.time_limit_min=10"]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of an untrained model and tiny images, which make eight slices."""
    folder = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    model = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(folder / "model.pt", build(model), model, {})
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_SLICES * IMAGES_PER_SHARD - 1):
        image = rng.integers(0, 255, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        (folder / "images" / f"{number:02d}.jpg").write_bytes(encode_jpeg(image))
    model_options = [f"source={folder / 'images'}", f"checkpoint={folder / 'model.pt'}", f"images_per_shard={IMAGES_PER_SHARD}"]
    return [*model_options, "threads=1", "privacy=none", *EASY]


def run_locally(options: list[str], out: Path) -> Path:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        run_stage(compose("engine", overrides=[*options, f"out={out}", "report=false"]))
    return out


def environment() -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    return {"PATH": os.pathsep.join([here, os.environ["PATH"]]), "OMP_NUM_THREADS": "1"}


def files(folder: Path) -> dict[str, bytes]:
    """Return all files except the ledger, which contains times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "ledger.json"}


def read_slice_log(out: Path) -> list[dict[str, Any]]:
    """Return one log entry per slice, with its node."""
    return [json.loads(line) for log in (out / ".engine" / "work").glob("*.jsonl") for line in log.read_text().splitlines()]


def test_array_on_two_nodes_equals_one_machine(cluster: Any, options: list[str], tmp_path: Path) -> None:
    expected = files(run_locally(options, tmp_path / "here"))
    assert sum(name.endswith(".tar") for name in expected) == NUM_SLICES
    out = tmp_path / "there"
    command = ["sam-engine", "driver=slurm", f"driver.tasks={NUM_SLICES}", *TASK, *options, f"out={out}", "report=false"]
    output = cluster.run_command(*command, cwd=tmp_path, check=True, **environment())
    assert files(out) == expected
    assert sorted(entry["slice"] for entry in read_slice_log(out)) == list(range(NUM_SLICES))
    assert {entry["node"] for entry in read_slice_log(out)} == {"n1", "n2"}
    assert f"{NUM_SLICES} tasks, logs in" in output
    assert "scancel" in output
    assert (out / "ledger.json").is_file()


def test_killed_task_is_named_and_the_command_resumes(cluster: Any, options: list[str], tmp_path: Path) -> None:
    options = [*options, "images_per_shard=1", "stage.generator.points_per_side=24"]  # many slices that take their time
    expected = files(run_locally(options, tmp_path / "here"))
    out = tmp_path / "there"
    command = ["sam-engine", "driver=slurm", "driver.tasks=2", *TASK, "driver.options={comment: mine}", *options, f"out={out}"]
    env = {**cluster.env, **environment()}
    with (tmp_path / "said").open("w+") as log, subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log) as first:
        cluster.wait_until(lambda: any(out.glob("*.manifest.json")) or first.poll() is not None, 120, "first shards")
        for line in cluster.run_command("squeue", "--noheader", "--format", "%A %T").splitlines():
            number, state = line.split()
            if state == "RUNNING":
                cluster.run_command("scancel", "--signal=KILL", "--full", number)
        cluster.wait_until(lambda: first.poll() is not None, 120, "end of the command")
    output = (tmp_path / "said").read_text()
    assert first.returncode == 1, output
    assert "slices failed, start the same command again to retry them" in output
    assert "was ended from outside (see " in output
    cluster.run_command(*command, "report=false", cwd=tmp_path, check=True, **environment())
    assert files(out) == expected


def test_sbatch_script_makes_all_slices(cluster: Any, repo_root: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "source" / "sa_000000.tar", [make_sample(index) for index in range(7)])
    options = [
        "stage=assisted_manual",
        f"source={tmp_path / 'source'}",
        "images_per_shard=2",
        "threads=1",
        "report=false",
        "privacy=none",
    ]
    expected = files(run_locally(options, tmp_path / "here"))
    script, out = str(repo_root / "slurm" / "engine_array.sbatch"), tmp_path / "there"
    flags = ["--partition=low", "--array=0-1", "--account=", "--gpus=0", "--cpus-per-task=1", "--time=10"]
    job = cluster.submit(*flags, script, *options, f"out={out}", cwd=tmp_path, **environment())
    logs = lambda: "".join(path.read_text() for path in tmp_path.glob("*.log"))  # noqa: E731
    cluster.wait_until(lambda: not cluster.run_command("squeue", "-h", "-j", job).strip(), 120, f"end of the array: {logs()}")
    assert files(out) == expected, logs()
    assert (out / "ledger.json").is_file()
