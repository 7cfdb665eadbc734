"""The trainer that `sam-train` makes leaves the order of samples to the data module, on any number of devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader

from sam_train.config import config_dir
from sam_train.data.dataset import PositionSampler
from sam_train.errors import ConfigError
from sam_train.train import make_trainer


def test_half_precision_that_needs_a_loss_scale_is_refused(tmp_path: Path) -> None:
    """The encoder's backward pass starts from gradients that are scaled already: Lightning would scale them again."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides)
    with pytest.raises(ConfigError, match="take bf16-mixed"):
        make_trainer(cfg, tmp_path)


def test_no_sampler_is_put_in_place_of_ours(tmp_path: Path) -> None:
    """Lightning would wrap it for a second division among ranks, and stop over an endless one."""
    overrides = ["data.shards=none.tar", "wandb.enabled=false", "trainer.accelerator=cpu"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", [*overrides, "trainer.devices=2", "+trainer.strategy=ddp"])
    trainer = make_trainer(cfg, tmp_path)
    assert trainer._accelerator_connector.is_distributed
    sampler = PositionSampler(start=0, num_positions=None, rank=1, world_size=2)
    loader = DataLoader(list(range(9)), sampler=sampler)
    assert trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=None) is loader  # type: ignore[arg-type]
