"""`logger=` selects loggers; metrics.csv is always written, and masks are drawn in every logger that shows images."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.training import loggers
from sam_train.training.callbacks import LogMaskImages, MaskImage
from sam_train.training.csv_logger import ResumableCSVLogger


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("train", ["data.shards=none.tar", "wandb.mode=offline", *overrides])


@pytest.mark.parametrize(
    ("override", "kinds"),
    [
        ("logger=csv", [ResumableCSVLogger]),
        ("logger=wandb", [ResumableCSVLogger, WandbLogger]),
        ("logger=tensorboard", [ResumableCSVLogger, TensorBoardLogger]),
        ("logger=[csv,tensorboard,wandb]", [ResumableCSVLogger, TensorBoardLogger, WandbLogger]),
        ("logger=null", [ResumableCSVLogger]),
        ("wandb.enabled=false", [ResumableCSVLogger]),
    ],
)
def test_logger_names_one_or_several(override: str, kinds: list[type], tmp_path: Path) -> None:
    assert [type(logger) for logger in loggers.build_loggers(config(override), tmp_path)] == kinds


def test_unknown_and_missing_loggers_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"logger=tensorbord: expected one of csv, wandb, tensorboard, mlflow"):
        loggers.build_loggers(config("logger=tensorbord"), tmp_path)
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        with pytest.raises(ConfigError, match=rf"logger={name} needs {name}: pip install '\.\[{name}\]'"):
            loggers.build_loggers(config(f"logger={name}"), tmp_path)


def test_wandb_online_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "has_wandb_api_key", lambda: False)
    with pytest.raises(ConfigError, match=r"not logged in to wandb: run `wandb login`, or set wandb\.mode=offline"):
        loggers.build_loggers(config("wandb.mode=online"), tmp_path)


def test_mlflow_run_continues_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself is large and not installed with the tests: its logger is replaced by one that records its arguments."""
    made: list[dict[str, Any]] = []

    class Recorded(MLFlowLogger):
        def __init__(self, **values: Any) -> None:
            made.append(values)

        @property
        def run_id(self) -> str:
            return made[-1]["run_id"] or "new"

    monkeypatch.setattr(loggers, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(loggers, "MLFlowLogger", Recorded)
    for _ in range(2):
        loggers.build_loggers(config("logger=mlflow", "mlflow.tracking_uri=http://server:5000"), tmp_path)
    assert [values["run_id"] for values in made] == [None, "new"]
    assert {values["tracking_uri"] for values in made} == {"http://server:5000"}
    loggers.build_loggers(config("logger=mlflow"), tmp_path)
    assert made[-1]["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"


def test_masks_are_drawn_in_every_logger_that_shows_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    shown: list[tuple[str, Any]] = []

    class Board(TensorBoardLogger):
        experiment = SimpleNamespace(add_image=lambda tag, image, step, dataformats: shown.append((tag, image.shape)))  # type: ignore[assignment]

    class Flow(MLFlowLogger):
        experiment = SimpleNamespace(  # type: ignore[assignment]
            log_image=lambda run, image, artifact_file: shown.append((artifact_file, image.shape))
        )
        run_id = "run"  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

    class Wandb(WandbLogger):
        experiment = SimpleNamespace(  # type: ignore[assignment]
            log=lambda row: shown.append(("wandb", [image._masks.keys() for image in row["val/masks"]]))
        )

    callback = LogMaskImages()
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4], masks[1, :2, :2] = True, True
    callback._images = [MaskImage("sa_1", np.zeros((3, 8, 8), np.uint8).transpose(1, 2, 0), masks, masks)]
    trainer = Mock(spec=Trainer, is_global_zero=True, global_step=20)
    trainer.loggers = [Board(tmp_path), Flow(), Wandb(offline=True)]
    callback.on_validation_end(trainer, Mock(spec=LightningModule))
    assert shown == [
        ("val/masks/sa_1", (8, 16, 3)),
        ("val_masks/step_0000020/sa_1.png", (8, 16, 3)),
        ("wandb", [{"target": 0, "one click": 0}.keys()]),
    ]
    drawn = MaskImage("sa_1", np.zeros((3, 8, 8), np.uint8).transpose(1, 2, 0), masks, np.zeros_like(masks)).draw()
    assert drawn[:4, :8].any()
    assert not drawn[:, 8:].any(), "nothing was predicted"
