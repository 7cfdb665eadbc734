"""A run is what it started from: content is compared at every start, by key, with the old and the new value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sam_train.checkpoint import checkpoint_hash, load_checkpoint, read_checkpoint, save_checkpoint
from sam_train.config import build, config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.model.embedding_hash import embedding_hash
from sam_train.shards import write_shard
from sam_train.train import train_model
from sam_train.training.run_identity import FILE

SMALL = ["model=vit_nano", "wandb.enabled=false", "~callbacks", "threads=1", "trainer.accelerator=cpu", "trainer.max_steps=1"]
SMALL += ["prompts={num_corrections: 1, num_mask_only_rounds: 0}", "+trainer.enable_progress_bar=false"]
SMALL += ["checkpoint_every_n_steps=1", "optim.milestones=[9, 9]"]
CONFIG: Any = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))


def train(tmp_path: Path, *overrides: str) -> dict[str, float]:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        places = [f"data.shards={tmp_path / 'shards'}", f"run_dir={tmp_path / 'run'}"]
        return train_model(compose("train", overrides=[*SMALL, *places, *overrides]))


def write_shards(folder: Path, *indices: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in indices])


@pytest.fixture(autouse=True)
def _shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 0, 1)


def write_base(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    save_checkpoint(path, build(CONFIG), CONFIG, {})
    return checkpoint_hash(path)


MORE_STEPS = "trainer.max_steps=2"


@pytest.mark.parametrize("key", ["init_checkpoint", "teacher"])
def test_another_file_behind_a_checkpoint_ends_a_resume(key: str, tmp_path: Path) -> None:
    """It was resumed on the old weights, with the new file's hash in the embedding cache and in the provenance."""
    base, cache = tmp_path / "base.pt", tmp_path / "embeddings"
    options = [f"{key}={base}", f"embedding_cache={cache}"] + (["freeze_image_encoder=true"] if key == "init_checkpoint" else [])
    first = write_base(base, 1)
    encoder = embedding_hash(load_checkpoint(base))
    train(tmp_path, *options)
    second = write_base(base, 2)
    for steps in ("trainer.max_steps=1", MORE_STEPS):
        with pytest.raises(ConfigError, match=rf"another content of {key} \(was {first}, now {second}\): restore the old"):
            train(tmp_path, *options, steps)
    assert [path.name for path in cache.iterdir()] == [encoder], "all cached embeddings are those of the weights that encoded"
    shutil.move(base, tmp_path / "elsewhere.pt")
    assert write_base(tmp_path / "elsewhere.pt", 1) == first
    train(tmp_path, *options, MORE_STEPS, f"{key}={tmp_path / 'elsewhere.pt'}")
    name = {"init_checkpoint": "init"}.get(key, key)
    for path in (tmp_path / "run" / "model.pt", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        assert read_checkpoint(path).provenance[name] == first


def test_replaced_shards_end_a_resume_and_a_finished_run(tmp_path: Path) -> None:
    train(tmp_path)
    write_shards(tmp_path / "shards", 0, 2)
    for steps in ("trainer.max_steps=1", MORE_STEPS):
        with pytest.raises(ConfigError, match=r"content of data\.shards \(was 1 shards, 2 images, SHA-256 .*, now 1 shards, 2"):
            train(tmp_path, steps)
    write_shards(tmp_path / "shards", 0, 1)
    assert train(tmp_path, MORE_STEPS)["steps"] == 2


def test_the_same_content_elsewhere_and_other_observers_are_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "data.shards=shards")
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    write_shards(tmp_path / "val", 3)
    changes = [f"data.shards={tmp_path / 'copy'}", f"data.val_shards={tmp_path / 'val'}", "data.num_workers=1"]
    changes += [f"data.cache_dir={tmp_path / 'cache'}", "data.strict=true", "checkpoint_every_n_steps=5"]
    metrics = train(tmp_path, MORE_STEPS, *changes)
    assert metrics["steps"] == 2
    assert "val/miou_at_1" in metrics


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=bf16-mixed", r"trainer\.precision \(was 32-true, now bf16-mixed\)"),
        ("optim.lr=0.5", r"optim\.lr \(was \S+, now 0\.5\)"),
        ("data.max_masks=3", r"data\.max_masks \(was 64, now 3\)"),
        ("+model.decoder_dropout=0.5", r"model\.decoder_dropout \(was null, now 0\.5\)"),
        ("seed=7", r"data\.seed \(was 0, now 7\), seed \(was 0, now 7\)"),
    ],
)
def test_a_key_that_decides_the_weights_is_named(override: str, message: str, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ConfigError, match=rf"holds a run with another {message}: restore the old values and files, set another"):
        train(tmp_path, MORE_STEPS, override)
    assert train(tmp_path, MORE_STEPS, "trainer.precision=32")["steps"] == 2, "another name of the same precision"


def test_a_run_of_an_earlier_version_is_compared_by_its_paths(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "run" / FILE).unlink()
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"another data\.shards \(was .*shards, now .*copy\)"):
        train(tmp_path, MORE_STEPS, f"data.shards={tmp_path / 'copy'}")
    assert train(tmp_path, MORE_STEPS)["steps"] == 2
    assert json.loads((tmp_path / "run" / FILE).read_bytes())["data.shards"].startswith("1 shards, 2 images, SHA-256 ")


def test_a_corrupt_identity_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    for content in ("{", "[1]", '{"data.shards": 3}'):
        (tmp_path / "run" / FILE).write_text(content)
        with pytest.raises(CheckpointError, match=r"identity\.json is not .*: restore it, or remove the folder"):
            train(tmp_path, MORE_STEPS)
