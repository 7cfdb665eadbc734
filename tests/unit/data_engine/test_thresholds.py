"""A checkpoint may carry the thresholds of the automatic stage; for others the paper's hold, and given ones always win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from data_engine.engine import check_config
from data_engine.stages import FullyAutomatic
from data_engine.thresholds import with_checkpoint_thresholds
from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir
from sam_train.errors import CheckpointError
from sam_train.inference import GridMaskGenerator


def engine_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose("engine", overrides=["source=PHOTOS", "out=SHARDS", "privacy=none", *overrides])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "model.pt", {"pred_iou_thresh": 0.55, "stability_score_thresh": 0.7})


def write(path: Path, thresholds: dict[str, Any]) -> Path:
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(path, build(config), config, {"generator": thresholds} if thresholds else {})  # type: ignore[arg-type]
    return path


def thresholds_of(cfg: DictConfig) -> tuple[float, float]:
    stage = check_config(cfg)
    assert isinstance(stage, FullyAutomatic)
    assert isinstance(stage.generator, GridMaskGenerator)
    return stage.generator.filters.pred_iou_thresh, stage.generator.filters.stability_score_thresh


def test_thresholds_of_the_checkpoint_are_used(checkpoint: Path) -> None:
    cfg = with_checkpoint_thresholds(engine_config(f"checkpoint={checkpoint}"))
    assert thresholds_of(cfg) == (0.55, 0.7)
    assert cfg.stage.generator.pred_iou_thresh == 0.55, "they are stored and hashed like thresholds that were given"


def test_given_thresholds_win(checkpoint: Path) -> None:
    cfg = with_checkpoint_thresholds(engine_config(f"checkpoint={checkpoint}", "stage.generator.pred_iou_thresh=0.9"))
    assert thresholds_of(cfg) == (0.9, 0.7)


def test_the_paper_holds_for_a_checkpoint_without_thresholds(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "plain.pt", {})
    cfg = with_checkpoint_thresholds(engine_config(f"checkpoint={checkpoint}"))
    assert thresholds_of(cfg) == (0.88, 0.95)
    same = with_checkpoint_thresholds(engine_config(f"checkpoint={checkpoint}", "generator@stage.generator=paper"))
    assert cfg == same, "a run that an earlier version began has the same config"


@pytest.mark.parametrize("value", ["high", 88])
def test_other_values_are_refused(tmp_path: Path, value: object) -> None:
    checkpoint = write(tmp_path / "odd.pt", {"pred_iou_thresh": value})
    with pytest.raises(CheckpointError, match=f"the threshold pred_iou_thresh is {value!r}, expected .* of at most 1"):
        with_checkpoint_thresholds(engine_config(f"checkpoint={checkpoint}"))
