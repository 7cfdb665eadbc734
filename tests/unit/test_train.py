"""The trainer and callbacks of `sam-train`: precision, wandb run id, run timer, sample order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from sam_train.config import config_dir
from sam_train.data.sampler import DistributedPositionSampler
from sam_train.errors import ConfigError
from sam_train.training.loggers import wandb_run_id
from sam_train.training.run_timer import RunTimer
from sam_train.training.trainer import build_trainer


def test_rejects_fp16_which_needs_loss_scaling(tmp_path: Path) -> None:
    """The encoder's backward pass starts from gradients that are already scaled; Lightning would scale them again."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides)
    with pytest.raises(ConfigError, match=r"set trainer\.precision=bf16-mixed"):
        build_trainer(cfg, tmp_path)


def test_wandb_run_id_belongs_to_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wandb_run_id("cells/long run", tmp_path / "a")
    assert re.fullmatch("cells-long-run-[0-9a-f]{8}", first)
    assert wandb_run_id("cells/long run", tmp_path / "a") == first
    assert wandb_run_id("cells/long run", tmp_path / "b") != first, "another folder is another run"
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert wandb_run_id("cells/long run", tmp_path / "a") == first
    wandb_run_id("cells/long run", tmp_path / "c")
    assert not (tmp_path / "c").exists(), "only rank 0 writes it"


def test_wandb_logger_uses_the_run_id(tmp_path: Path) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["data.shards=none.tar", "trainer.accelerator=cpu", "wandb.mode=offline", "name=mine"])
    loggers = [logger for logger in build_trainer(cfg, tmp_path).loggers if isinstance(logger, WandbLogger)]
    assert [logger._wandb_init["id"] for logger in loggers] == [(tmp_path / "wandb_id").read_text().strip()]


def test_run_timer_counts_repeated_steps_once() -> None:
    now = [100.0]
    first = RunTimer(lambda: now[0])
    now[0] = 130.0
    saved = first.state_dict()
    now[0] = 145.0  # killed here: fifteen seconds are repeated
    now[0] = 5.0  # another process has another clock
    second = RunTimer(lambda: now[0])
    second.load_state_dict(saved)
    now[0] = 25.0
    assert second.seconds() == 30 + 20
    assert second.state_dict() == {"seconds": 50}


def test_lightning_does_not_replace_the_sampler(tmp_path: Path) -> None:
    """Lightning's wrapper would divide the samples among the ranks a second time, and fails on an endless sampler."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [*overrides, "trainer.devices=2"])
    trainer = build_trainer(cfg, tmp_path)
    assert trainer._accelerator_connector.is_distributed
    sampler = DistributedPositionSampler(start=0, num_positions=None, rank=1, world_size=2)
    loader = DataLoader(list(range(9)), sampler=sampler)
    assert trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=None) is loader  # type: ignore[arg-type]
