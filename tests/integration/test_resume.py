"""A training run that is killed and resumed by the same command ends with bit-identical weights to an uninterrupted run.

Data position, prompts, dropped paths, optimiser, schedule and step count resume from the last checkpoint; the log has one row per
step.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sam_train.config import config_dir
from sam_train.shards import write_shard
from sam_train.train import train_model
from sam_train.training import SamModule

MAX_STEPS = 7
SMALL = [
    "model=vit_nano",
    "wandb.enabled=false",
    "~callbacks",
    "threads=1",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
    f"trainer.max_steps={MAX_STEPS}",
    "trainer.log_every_n_steps=1",
    "checkpoint_every_n_steps=2",
    "optim.warmup_steps=3",
    "prompts={num_corrections: 2, num_mask_only_rounds: 2}",
    "data={images_per_step: 2, flip: true, quarter_turns: true, scale_jitter: [0.5, 1.5]}",
    "+model.drop_path_rate=0.5",
    "+model.decoder_dropout=0.1",  # draws from torch's global generator
]


class KilledError(BaseException):
    """Simulates SIGKILL: no `except Exception` catches it."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(5)])
    return folder


def overrides(shards: Path, run_dir: Path) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"run_dir={run_dir}"]


def config(shards: Path, run_dir: Path, *more: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose("train", overrides=[*overrides(shards, run_dir), *more])


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken")
    train_model(config(shards, run_dir))
    return run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model.pt", weights_only=True)["model"]


def log_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv" / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_same(resumed: Path, uninterrupted: Path, *, optional_rows: Collection[str] = ()) -> None:
    expected, found = weights(uninterrupted), weights(resumed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [row["step"] for row in log_rows(uninterrupted)] == [str(step) for step in range(MAX_STEPS)]
    logged = {row["step"] for row in log_rows(resumed)} | {*optional_rows}
    expected_rows = [row for row in log_rows(uninterrupted) if row in log_rows(resumed) or row["step"] not in optional_rows]
    assert logged >= {str(step) for step in range(MAX_STEPS)}
    assert log_rows(resumed) == expected_rows
    assert json.loads((resumed / "metrics.json").read_bytes())["steps"] == MAX_STEPS


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SamModule.training_step

    def until(self: SamModule, batch: object, batch_idx: int) -> None:
        if self.global_step == step:
            raise KilledError
        original(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(SamModule, "training_step", until)


@pytest.mark.parametrize("steps", [(1,), (4,), (3, 5, 5)], ids=["before the first checkpoint", "on a checkpoint", "repeatedly"])
def test_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    steps: tuple[int, ...], shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            kill_at(step, patch)
            with pytest.raises(KilledError):
                train_model(config(shards, tmp_path))
        assert not (tmp_path / "metrics.json").exists(), "it marks a finished run"
    train_model(config(shards, tmp_path))
    check_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_loader_processes_do_not_change_the_result(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Killed with two loader processes and resumed with one or two: the samples are those of a run without loader processes."""
    for step, num_workers in ((3, 2), (5, 1)):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(step, patch)
            with pytest.raises(KilledError):
                train_model(config(shards, tmp_path, f"data.num_workers={num_workers}"))
    train_model(config(shards, tmp_path, "data.num_workers=2"))
    check_same(tmp_path, uninterrupted)


def test_other_seeds_give_other_weights(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Otherwise the tests above would compare runs that are equal in any case."""
    train_model(config(shards, tmp_path, "seed=1"))
    expected, found = weights(uninterrupted), weights(tmp_path)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] != []


def test_finished_run_is_not_changed_by_another_start(shards: Path, tmp_path: Path) -> None:
    train_model(config(shards, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    metrics = train_model(config(shards, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert metrics == json.loads((tmp_path / "metrics.json").read_bytes())
    assert "train/loss" in metrics


def test_finished_run_with_more_steps_resumes(shards: Path, tmp_path: Path) -> None:
    """Resumes from the end for any checkpoint_every_n_steps; the learning rates here do not depend on max_steps."""
    more = ["checkpoint_every_n_steps=100", "optim.milestones=[9, 9]"]
    for steps in (3, MAX_STEPS):
        assert train_model(config(shards, tmp_path / "longer", f"trainer.max_steps={steps}", *more))["steps"] == steps
    train_model(config(shards, tmp_path / "in_one_run", *more))
    check_same(tmp_path / "longer", tmp_path / "in_one_run")


def test_validation_does_not_change_the_training(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """It validates before the first and after the last step too; `monitor=null` keeps the last model."""
    train_model(config(shards, tmp_path, f"data.val_shards={shards}", "trainer.val_check_interval=3", "monitor=null"))
    expected = weights(uninterrupted)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(tmp_path).items())
    assert [row["step"] for row in log_rows(tmp_path) if row["val/miou_at_1"]] == ["0", "2", "5", "6"]


def test_validation_skips_unusable_images(shards: Path, tmp_path: Path) -> None:
    """Three unusable images; two of them fill the first batch, which Lightning inspects before the first step."""
    samples = [make_sample(index, num_masks=0 if index in (0, 1, 3) else 2) for index in range(5)]
    write_shard(tmp_path / "val" / "sa_000000.tar", samples)
    write_shard(tmp_path / "clean" / "sa_000000.tar", [samples[2], samples[4]])
    measured = {}
    for name in ("val", "clean"):
        more = [f"data.val_shards={tmp_path / name}", "trainer.max_steps=2"]
        measured[name] = train_model(config(shards, tmp_path / f"run_{name}", *more))
    assert (measured["val"]["val/skipped"], measured["clean"]["val/skipped"]) == (3, 0)
    names = [f"val/miou_at_{clicks}" for clicks in (1, 3, 5)]
    assert [measured["val"][name] for name in names] == pytest.approx([measured["clean"][name] for name in names], rel=1e-5)


def test_duration_includes_earlier_processes(shards: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(5, patch)
        with pytest.raises(KilledError):
            train_model(config(shards, tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert 0 < checkpoint["callbacks"]["RunTimer"]["seconds"] < 100
    checkpoint["callbacks"]["RunTimer"]["seconds"] = 1000.0
    torch.save(checkpoint, last)
    assert 1000 < train_model(config(shards, tmp_path))["seconds"] < 1100


def test_validates_at_the_end_by_default(shards: Path, tmp_path: Path) -> None:
    metrics = train_model(config(shards, tmp_path, f"data.val_shards={shards}", "trainer.max_steps=2"))
    assert {"val/miou_at_1", "val/miou_at_3", "val/miou_at_5"} <= metrics.keys()


def test_kill_during_a_checkpoint_write_leaves_the_previous_checkpoint(
    shards: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Callable[..., None] = torch.save
    calls = []

    def interrupted_save(document: object, stream: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            stream.write(b"PK\3\4 half a checkpoint")  # type: ignore[attr-defined]
            raise KilledError
        save(document, stream)

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KilledError):
        train_model(config(shards, tmp_path))
    monkeypatch.undo()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    train_model(config(shards, tmp_path))
    check_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_resumes_after_sigkill(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sam_train.train", *overrides(shards, tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        message = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, message
    assert not (tmp_path / "metrics.json").exists()
    train_model(config(shards, tmp_path))
    # A kill between a checkpoint and the row of its step loses that row: the resumed run does not repeat the step.
    check_same(tmp_path, uninterrupted, optional_rows={"1", "3", "5"})
