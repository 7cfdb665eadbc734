"""SLURM jobs of a loop: the calls of sbatch, their order, and the handling of its errors. tests/slurm uses a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.pipeline import Action, Cycle
from data_engine.cycle.run_cycle import run_cycle
from data_engine.cycle.slurm_runner import SlurmRunner, job_device_overrides, launcher_in_job
from data_engine.cycle.subprocess_runner import ProcessLauncher
from data_engine.cycle_folder import CycleFolder
from sam_train.config import build, config_dir
from sam_train.errors import ConfigError

STAGES = [{"stage": "assisted_manual", "num_images": 2}]
NAMES = ["corpus", "1_assisted_manual/annotate", "1_assisted_manual/train", "1_assisted_manual/evaluate", "report"]
PROGRAM = """#!/bin/bash
echo "$0 $*" >> "{folder}/called"
{shell}
"""


@pytest.fixture
def cycle(tmp_path: Path) -> Cycle:
    cfg = OmegaConf.create(
        {"stages": STAGES, "initial_model": {"checkpoint": None, "shards": None}, "corpus": {"ground_truth": "t", "heldout": "h"}}
    )
    folder = CycleFolder(tmp_path)
    with lock_run_folder(folder) as lock:
        return Cycle(cfg, folder, ProcessLauncher(folder, lock))


def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Install shell programs by name, which log their calls."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, shell in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(PROGRAM.format(folder=tmp_path, shell=shell))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")


def calls(tmp_path: Path) -> list[str]:
    return [line.replace(f"{tmp_path}/", "") for line in (tmp_path / "called").read_text().splitlines()]


SBATCH = 'echo "$((100 + $(grep -c sbatch "$(dirname "$0")/../called")));cluster"'


def test_each_job_waits_for_the_one_before_it(cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch, sbatch=SBATCH)
    SlurmRunner().run(cycle)
    files = [name.replace("/", "-") for name in NAMES]
    waits = ["", *(f"--dependency=afterok:{number} " for number in range(101, 105))]
    assert calls(tmp_path) == [f"bin/sbatch --parsable {wait}jobs/{name}.sbatch" for wait, name in zip(waits, files, strict=True)]
    assert json.loads((tmp_path / "jobs.json").read_bytes()) == {str(101 + index): name for index, name in enumerate(NAMES)}


def test_nothing_is_submitted_while_jobs_are_in_the_queue(
    cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm(tmp_path, monkeypatch, sbatch=SBATCH, squeue="echo '104 PENDING'; echo '999 RUNNING'")
    SlurmRunner().run(cycle)
    SlurmRunner().run(cycle)
    assert len([line for line in calls(tmp_path) if "sbatch" in line]) == len(NAMES)
    assert "104  1_assisted_manual/evaluate: PENDING" in capsys.readouterr().out
    fake_slurm(tmp_path, monkeypatch, squeue="true")  # they are gone, and nothing is done
    SlurmRunner().run(cycle)
    assert len([line for line in calls(tmp_path) if "sbatch" in line]) == 2 * len(NAMES)


def test_rejected_job_cancels_those_before_it(cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(
        tmp_path, monkeypatch, sbatch=f"case $* in *train*) echo no such partition >&2; exit 1;; esac; {SBATCH}", scancel="true"
    )
    with pytest.raises(ConfigError, match=r"sbatch rejects .*train.sbatch: no such partition; the jobs before it were cancel"):
        SlurmRunner(partition="nowhere").run(cycle)
    assert calls(tmp_path)[-1] == "bin/scancel 101 102"
    assert not (tmp_path / "jobs.json").exists()


def test_names_the_local_runner_without_slurm(cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch was not found: use runner=local"):
        SlurmRunner().run(cycle)


def test_script_has_the_options_of_the_site_and_of_its_kind_of_action(cycle: Cycle, tmp_path: Path) -> None:
    runner: SlurmRunner = build(OmegaConf.load(f"{config_dir()}/runner/slurm.yaml"), partition="gpu", setup=["module load cuda"])
    train = cycle.list_actions()[2]
    script = runner.script(cycle.folder, train)
    options = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {
        "partition=gpu",
        "cpus-per-task=8",
        "ntasks-per-node=1",
        "signal=USR1@300",
        "kill-on-invalid-dep=yes",
        "requeue",
    } < set(options)
    assert not [option for option in options if option.startswith(("account", "gpus-per-node"))], (
        "null uses the default of the site"
    )
    assert "module load cuda" in script
    assert f"-m data_engine.cycle step run={tmp_path} name=1_assisted_manual/train &" in script
    assert "--signal" not in runner.script(cycle.folder, cycle.list_actions()[1])
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_rejects_an_unknown_kind_of_job() -> None:
    with pytest.raises(ConfigError, match=r"runner.sbatch has training: expected some of all, corpus, annotate, train"):
        SlurmRunner(sbatch={"training": {}})


def test_training_in_a_job_runs_under_srun_on_all_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch, srun="true")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert job_device_overrides() == ["trainer.num_nodes=2", "trainer.devices=4"]
    folder = CycleFolder(tmp_path)
    with lock_run_folder(folder) as lock:
        launcher_in_job(folder, lock).start("a: train", "sam_train.train", "name=x")
    (line,) = calls(tmp_path)
    assert line.startswith("bin/srun --kill-on-bad-exit=0 ")
    assert line.endswith("-m sam_train.train name=x trainer.num_nodes=2 trainer.devices=4")


def test_names_of_actions() -> None:
    assert Action("train", "3_semi_automatic").name == "3_semi_automatic/train"
    assert Action("report").name == "report"


def test_lists_queued_jobs_while_a_job_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm(tmp_path, monkeypatch, squeue="echo '7 RUNNING'")
    (tmp_path / "jobs.json").write_text('{"7": "1_assisted_manual/train"}')
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        stages = "stages=[{stage:assisted_manual,num_images:2}]"
        cfg = compose(
            "cycle", overrides=[f"run_dir={tmp_path}", "corpus.ground_truth=t", "corpus.heldout=h", stages, "runner=slurm"]
        )
    with lock_run_folder(CycleFolder(tmp_path)):
        run_cycle(cfg)
    assert "7  1_assisted_manual/train: RUNNING" in capsys.readouterr().out
    assert not (tmp_path / "config.yaml").exists()
