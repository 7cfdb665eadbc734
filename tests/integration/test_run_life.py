"""How a run ends and goes on: interrupts, stored reasons, the best model, the lock, continuation under another name."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import make_sample
from dist_runner import SMALL, rows, weights
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sam_train import evaluate
from sam_train.checkpoint import checkpoint_hash
from sam_train.cli.commands import TRAIN
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.shards import write_shard
from sam_train.structures import Batch
from sam_train.train import command, train_model
from sam_train.training import SamModule
from sam_train.training.click_validation import ClickValidation
from sam_train.training.run_lock import lock_run_folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(4)])
    return folder


def config(shards: Path, run_dir: Path, *more: str) -> DictConfig:
    values = ["data.images_per_step=1", f"data.shards={shards}", f"run_dir={run_dir}", *more]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose("train", overrides=[*SMALL, *values])


def read(run_dir: Path, name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((run_dir / name).read_bytes())
    return document


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: object) -> None:
    original = SamModule.training_step

    def step(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == number:
            action(self)  # type: ignore[operator]
        original(self, batch, batch_idx)

    monkeypatch.setattr(SamModule, "training_step", step)


def fake_miou(monkeypatch: pytest.MonkeyPatch, figures: dict[int, float]) -> None:
    """Make the validation after each step log the mIoU@1 of that step."""

    def log_and_reset(self: ClickValidation, module: SamModule, *, has_text_prompts: bool) -> None:
        self.iou_from_clicks.reset()
        module.log("val/miou_at_1", figures[module.global_step])

    monkeypatch.setattr(ClickValidation, "log_and_reset", log_and_reset)


def test_ctrl_c_finishes_the_step_and_the_run_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(config(shards, tmp_path / "unbroken"))
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda module: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as exit_:
            command(config(shards, tmp_path / "run"))
    assert exit_.value.code == 130
    assert read(tmp_path / "run", "ended.json")["reason"] == "interrupted"
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    train_model(config(shards, tmp_path / "run"))
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "run")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    assert read(tmp_path / "run", "ended.json")["reason"] == "done"


def test_second_ctrl_c_ends_the_run_at_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt_twice(module: SamModule) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        command(config(shards, tmp_path))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_model_is_the_best_and_figures_name_their_step(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_miou(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.8, 6: 0.7})
    values = [f"data.val_shards={shards}", "trainer.val_check_interval=2", "keep_top_k=2", "optim.milestones=[9, 9]"]
    metrics = train_model(config(shards, tmp_path, *values))
    assert {name: value for name, value in metrics.items() if name.startswith("val") and not name.endswith("skipped")} == {
        "val/miou_at_1": pytest.approx(0.8),
        "val/step": 4,
        "val_last/miou_at_1": pytest.approx(0.7),
        "val_last/step": 6,
        "val_before/miou_at_1": pytest.approx(0.1),
        "val_before/step": 0,
    }
    assert torch.load(tmp_path / "model.pt", weights_only=True)["provenance"]["steps"] == 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt")) == ["best.pt", "step-4.pt", "step-6.pt"]
    train_model(config(shards, tmp_path / "four", "trainer.max_steps=4", "optim.milestones=[9, 9]"))
    best, four = weights(tmp_path), weights(tmp_path / "four")
    assert all(torch.equal(best[name], four[name]) for name in four)


def test_monitor_null_keeps_the_last_model(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_miou(monkeypatch, {0: 0.1, 3: 0.8, 6: 0.7})
    train_model(config(shards, tmp_path, f"data.val_shards={shards}", "trainer.val_check_interval=3", "monitor=null"))
    assert torch.load(tmp_path / "model.pt", weights_only=True)["provenance"]["steps"] == 6


def test_validates_before_the_first_and_after_the_last_step(shards: Path, tmp_path: Path) -> None:
    """Neither 100 nor 4 divides the six steps."""
    for interval, steps in ((100, ["0", "5"]), (4, ["0", "3", "5"])):
        run_dir = tmp_path / str(interval)
        train_model(config(shards, run_dir, f"data.val_shards={shards}", f"trainer.val_check_interval={interval}"))
        assert [row["step"] for row in rows(run_dir) if row["val/miou_at_1"]] == steps


def test_validation_and_sam_evaluate_measure_the_same(shards: Path, tmp_path: Path) -> None:
    """The same weights on the same shards; masks that training drops at its image size are measured by both."""
    metrics = train_model(
        config(shards, tmp_path, f"data.val_shards={shards}", "data.min_area_px=700", "data.scale_jitter=[1.0, 1.0]")
    )
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("evaluate", overrides=[f"checkpoint={tmp_path / 'model.pt'}", f"shards={shards}", "threads=1"])
    evaluated = evaluate.run(cfg)
    for name in ("miou_at_1", "miou_at_3", "miou_at_5"):
        assert metrics[f"val/{name}"] == pytest.approx(evaluated[name], abs=1e-6)


def test_early_stopped_run_stays_ended(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_miou(monkeypatch, {0: 0.1, 1: 0.8, 2: 0.7, 3: 0.6, 4: 0.9, 5: 0.5, 6: 0.4})
    values = [f"data.val_shards={shards}", "trainer.val_check_interval=1"]
    assert train_model(config(shards, tmp_path, *values, "patience=2"))["steps"] == 3
    assert read(tmp_path, "ended.json")["reason"] == "early stopping"
    before = (tmp_path / "model.pt").read_bytes()
    assert train_model(config(shards, tmp_path, *values, "patience=2"))["steps"] == 3
    assert (tmp_path / "model.pt").read_bytes() == before
    metrics = train_model(config(shards, tmp_path, *values, "patience=3"))
    assert (metrics["steps"], metrics["val/step"]) == (6, 4)


def test_run_that_max_time_ended_stays_ended(shards: Path, tmp_path: Path) -> None:
    values = ["+trainer.max_time={seconds: 0}"]
    steps = train_model(config(shards, tmp_path, *values))["steps"]
    assert steps < 6
    assert read(tmp_path, "ended.json")["reason"] == "max_time"
    assert train_model(config(shards, tmp_path, *values))["steps"] == steps


def test_better_model_survives_a_kill_after_its_validation(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best validation is at step 3, the last checkpoint before the kill at step 2."""

    class KilledError(BaseException):
        pass

    def kill(module: SamModule) -> None:
        raise KilledError

    fake_miou(monkeypatch, {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.9, 4: 0.3, 5: 0.3, 6: 0.3})
    values = [f"data.val_shards={shards}", "trainer.val_check_interval=1"]
    expected = train_model(config(shards, tmp_path / "unbroken", *values))
    with monkeypatch.context() as patch:
        at_step(patch, 3, kill)
        with pytest.raises(KilledError):
            train_model(config(shards, tmp_path / "run", *values))
    metrics = train_model(config(shards, tmp_path / "run", *values))
    del expected["seconds"], metrics["seconds"]
    assert metrics == expected
    found = weights(tmp_path / "run")
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(tmp_path / "unbroken").items())


def test_second_process_in_a_run_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    with (
        lock_run_folder(tmp_path),
        pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()} on \S+, since 20\d\d-"),
    ):
        train_model(config(shards, tmp_path))
    train_model(config(shards, tmp_path))


def test_continued_run_may_be_trained_further(shards: Path, tmp_path: Path) -> None:
    """A run from its weights resumes on its own ones, and has the hash of the checkpoint that it began with."""
    train_model(config(shards, tmp_path / "a", "trainer.max_steps=2"))
    begun_with = checkpoint_hash(tmp_path / "a" / "checkpoints" / "last.ckpt")
    source = f"resume_from={tmp_path / 'a'}"
    train_model(config(shards, tmp_path / "b", source, "trainer.max_steps=2"))
    train_model(config(shards, tmp_path / "a"))
    assert train_model(config(shards, tmp_path / "b", source))["steps"] == 6
    assert torch.load(tmp_path / "b" / "model.pt", weights_only=True)["provenance"]["resumed_from"] == begun_with
    with pytest.raises(ConfigError, match=r"another resume_from \(was .*, now null\)"):
        train_model(config(shards, tmp_path / "b"))


def test_continues_under_another_name_with_another_learning_rate(shards: Path, tmp_path: Path) -> None:
    train_model(config(shards, tmp_path / "a"))
    values = [f"resume_from={tmp_path / 'a'}", "optim.lr=0"]
    train_model(config(shards, tmp_path / "b", *values, "trainer.max_steps=1"))
    assert all(torch.equal(tensor, weights(tmp_path / "a")[name]) for name, tensor in weights(tmp_path / "b").items())
    values = [values[0], "optim.lr=1e-6", "resume_optimizer=true", "trainer.max_steps=1"]
    train_model(config(shards, tmp_path / "c", *values))
    state = torch.load(tmp_path / "c" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {float(value["step"]) for value in state.values() if "step" in value} == {7.0}


def test_longer_cosine_run_is_announced_and_smooth(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitor = "+callbacks.lr={_target_: pytorch_lightning.callbacks.LearningRateMonitor, logging_interval: step}"
    values = ["optim.schedule=cosine", "optim.warmup_steps=2", "optim.lr=1e-3", monitor]
    train_model(config(shards, tmp_path, *values))
    caplog.set_level("INFO", logger="sam_train")
    train_model(config(shards, tmp_path, *values, "trainer.max_steps=40"))
    assert "max_steps was 6 and is 40, which changes the schedule" in caplog.text
    name = next(key for key in rows(tmp_path)[0] if key.startswith("lr-") and key.endswith("pg1"))
    rates = [float(row[name]) for row in rows(tmp_path) if row[name]]
    base = max(rates)
    assert max(abs(b - a) for a, b in pairwise(rates[2:])) < 0.6 * base, "no jump"


def test_nan_message_holds_the_command_that_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(module: SamModule) -> None:
        module.loss.focal_weight = float("nan")

    line = [value for value in SMALL if not value.startswith(("trainer.max", "data="))]
    line += [f"data.shards={shards}", "trainer.max_steps=4", f"run_dir={tmp_path / 'a'}", "name=a"]
    with monkeypatch.context() as patch:
        at_step(patch, 3, diverge)
        patch.setattr(sys, "argv", ["sam-train", *line])
        with pytest.raises(SystemExit):
            TRAIN.main()
    message = capsys.readouterr().err
    assert read(tmp_path / "a", "ended.json")["reason"] == "NaN"
    found = re.search(r"With half the learning rate: sam-train (.*)", message)
    assert found, message
    assert f"resume_from={tmp_path / 'a'} name=a_lower_lr optim.lr=0.0004" in found[1]
    monkeypatch.setattr(sys, "argv", ["sam-train", *shlex.split(found[1]), f"run_dir={tmp_path / 'b'}"])
    TRAIN.main()
    assert read(tmp_path / "b", "ended.json")["reason"] == "done"
