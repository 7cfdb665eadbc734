"""The trainer that `sam-train` makes leaves the order of samples to the data module, on any number of devices."""

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
from sam_train.training.callbacks import RunTimer
from sam_train.training.trainer import build_trainer, wandb_run_id


def test_half_precision_that_needs_a_loss_scale_is_refused(tmp_path: Path) -> None:
    """The encoder's backward pass starts from gradients that are scaled already: Lightning would scale them again."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides)
    with pytest.raises(ConfigError, match=r"set trainer\.precision=bf16-mixed"):
        build_trainer(cfg, tmp_path)


def test_wandb_run_goes_on_with_its_folder_and_only_with_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = wandb_run_id("cells/long run", tmp_path / "a")
    assert re.fullmatch("cells-long-run-[0-9a-f]{8}", first)
    assert wandb_run_id("cells/long run", tmp_path / "a") == first
    assert wandb_run_id("cells/long run", tmp_path / "b") != first, "another user, project or beginning"
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert wandb_run_id("cells/long run", tmp_path / "a") == first
    wandb_run_id("cells/long run", tmp_path / "c")
    assert not (tmp_path / "c").exists(), "written by the first process alone"


def test_wandb_is_given_that_id(tmp_path: Path) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", ["data.shards=none.tar", "trainer.accelerator=cpu", "wandb.mode=offline", "name=mine"])
    loggers = [logger for logger in build_trainer(cfg, tmp_path).loggers if isinstance(logger, WandbLogger)]
    assert [logger._wandb_init["id"] for logger in loggers] == [(tmp_path / "wandb_id").read_text().strip()]


def test_stopwatch_counts_what_stands_once() -> None:
    now = [100.0]
    first = RunTimer(lambda: now[0])
    now[0] = 130.0
    saved = first.state_dict()
    now[0] = 145.0  # killed here: fifteen seconds that are done again
    now[0] = 5.0  # another process, whose clock starts anywhere
    second = RunTimer(lambda: now[0])
    second.load_state_dict(saved)
    now[0] = 25.0
    assert second.seconds() == 30 + 20
    assert second.state_dict() == {"seconds": 50}


def test_no_sampler_is_put_in_place_of_ours(tmp_path: Path) -> None:
    """Lightning would wrap it for a second division among ranks, and stop over an endless one."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [*overrides, "trainer.devices=2"])
    trainer = build_trainer(cfg, tmp_path)
    assert trainer._accelerator_connector.is_distributed
    sampler = DistributedPositionSampler(start=0, num_positions=None, rank=1, world_size=2)
    loader = DataLoader(list(range(9)), sampler=sampler)
    assert trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=None) is loader  # type: ignore[arg-type]
