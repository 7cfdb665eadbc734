"""Runs that start from released weights write a checkpoint with config and provenance."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sam_train.checkpoint import checkpoint_hash, export_weights, load_checkpoint, save_checkpoint
from sam_train.cli.commands import TRAIN
from sam_train.config import build, config_dir, to_plain
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.build import build_mobile_sam, build_sam
from sam_train.model.tiny_vit import TinyViT
from sam_train.model.weights import infer_config
from sam_train.shards import write_shard
from sam_train.train import train_model
from sam_train.training.architecture import differences

RUN = [
    "wandb.enabled=false",
    "~callbacks",
    "threads=1",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
    "trainer.max_steps=1",
    "trainer.log_every_n_steps=1",
    "prompts={num_corrections: 1, num_mask_only_rounds: 0}",
    "model.image_size=64",
    "model.prompt_dim=16",
    "+model.decoder_mlp_dim=16",
]
NANO = to_plain(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))  # type: ignore[arg-type]
MOBILE_SAM = ["model=mobile_sam", "model.embed_dims=[8,8,16,16]", "model.depths=[1,1,1,1]", "model.num_heads=[2,2,2,2]"]
VIT = ["model=vit_b", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.global_attn_indexes=[1]"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(2)])
    return folder


def train(shards: Path, init: Path, *overrides: str) -> Path:
    """Train one step and return the path of model.pt."""
    run_dir = init.parent / "run"
    places = [f"data.shards={shards}", f"run_dir={run_dir}", f"init_checkpoint={init}"]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        train_model(compose("train", overrides=[*RUN, *places, *overrides]))
    return run_dir / "model.pt"


def test_learning_rate_zero_keeps_released_mobile_sam_weights(shards: Path, tmp_path: Path) -> None:
    """Frozen batch norms keep their statistics, which would otherwise change at any learning rate."""
    released = build_mobile_sam(
        embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], prompt_dim=16, decoder_mlp_dim=16
    )
    export_weights(released, tmp_path / "mobile_sam.pth")
    path = train(shards, tmp_path / "mobile_sam.pth", *MOBILE_SAM, "optim.lr=0")
    trained = load_checkpoint(path)
    assert isinstance(trained.image_encoder, TinyViT)
    assert trained.image_size == 64
    state = trained.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in released.state_dict().items())
    document = torch.load(path, weights_only=True)
    assert document["provenance"]["init"] == checkpoint_hash(tmp_path / "mobile_sam.pth")
    assert document["config"]["freeze_batch_norm"] is True
    assert json.loads((path.parent / "metrics.json").read_bytes())["steps"] == 1


def test_mae_weights_initialise_the_image_encoder(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = build_sam(image_size=64, embed_dim=32, depth=2, num_heads=2, global_attn_indexes=[1], prompt_dim=16).image_encoder
    blocks = {k.replace(".lin", ".fc"): v for k, v in encoder.state_dict().items() if k.startswith(("patch", "blocks"))}
    mae = {name: tensor for name, tensor in blocks.items() if "rel_pos" not in name}
    mae |= {"pos_embed": torch.randn(1, 10, 32), "cls_token": torch.zeros(1, 1, 32), "norm.weight": torch.ones(32)}
    torch.save({"model": mae}, tmp_path / "mae.pth")
    with caplog.at_level(logging.INFO, logger="sam_train"):
        path = train(shards, tmp_path / "mae.pth", *VIT, "optim.lr=0")
    assert "mae.pth: image encoder only, 27 tensors loaded (" in caplog.text
    assert "; 2 tensors dropped (" in caplog.text
    state = load_checkpoint(path).state_dict()
    assert torch.equal(state["image_encoder.blocks.1.mlp.lin2.weight"], mae["blocks.1.mlp.fc2.weight"])


def small_vit() -> Sam:
    """Build the model that the overrides VIT and RUN describe."""
    numbers = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "image_size": 64}
    return build_sam(**numbers, prompt_dim=16, decoder_mlp_dim=16)


def test_fine_tunes_the_decoder_with_a_frozen_encoder(shards: Path, tmp_path: Path) -> None:
    """The embeddings are cached; the trained model is complete, and its image encoder is unchanged."""
    before = small_vit()
    export_weights(before, tmp_path / "sam.pth")
    frozen = ["freeze_image_encoder=true", f"embedding_cache={tmp_path / 'embeddings'}", "trainer.max_steps=2"]
    after = load_checkpoint(train(shards, tmp_path / "sam.pth", *VIT, *frozen))
    encoders = (model.image_encoder.state_dict().values() for model in (before, after))
    assert all(torch.equal(a, b) for a, b in zip(*encoders, strict=True))
    assert not torch.equal(after.mask_decoder.iou_token.weight, before.mask_decoder.iou_token.weight)
    assert list((tmp_path / "embeddings").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze_image_encoder=true", "init_checkpoint=null"], "init_checkpoint"),
        (["embedding_cache=somewhere"], "freeze_image_encoder=true"),
    ],
)
def test_rejects_freezing_without_weights_and_caching_without_freezing(
    shards: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    export_weights(small_vit(), tmp_path / "sam.pth")
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "sam.pth", *VIT, *overrides)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "mobile_sam"])
def test_model_option_of_released_weights_has_their_architecture(name: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = to_plain(compose("train", overrides=[f"model={name}"]).model)
    with torch.device("meta"):
        state = build(config).state_dict()
    assert differences(infer_config(state, origin=name), config) == {}


def train_command(monkeypatch: pytest.MonkeyPatch, shards: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Run `sam-train` for one step and return the config of the model that it writes."""
    line = [value for value in RUN if not value.lstrip("+").startswith("model.")]
    monkeypatch.setattr(sys, "argv", ["sam-train", *line, f"data.shards={shards}", f"run_dir={run_dir}", *overrides])
    TRAIN.main()
    config: dict[str, Any] = torch.load(run_dir / "model.pt", weights_only=True)["config"]
    return config


def test_trains_the_architecture_of_the_checkpoint_without_model(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Released weights, a model.pt and a run to continue; values of `model.` apply to it; another `model=` is refused."""
    export_weights(small_vit(), tmp_path / "sam.pth")
    init = f"init_checkpoint={tmp_path / 'sam.pth'}"
    config = train_command(monkeypatch, shards, tmp_path / "a", init, "+model.drop_path_rate=0.5")
    assert (config["embed_dim"], config["image_size"], config["drop_path_rate"]) == (32, 64, 0.5)
    for name, source in (("b", f"init_checkpoint={tmp_path / 'a' / 'model.pt'}"), ("c", f"resume_from={tmp_path / 'a'}")):
        assert train_command(monkeypatch, shards, tmp_path / name, source)["embed_dim"] == 32
    with pytest.raises(SystemExit):
        train_command(monkeypatch, shards, tmp_path / "d", init, "model=vit_nano")
    message = capsys.readouterr().err
    assert "sam.pth holds a model of another architecture: image_size" not in message, "both have 64 pixels"
    assert "patch_size is 16 in the checkpoint and 8 here" in message
    assert "leave out model=vit_nano to train the architecture of the checkpoint" in message


def test_architecture_includes_what_no_shape_shows(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention heads and the activation of IoU scores change no shape of a weight."""
    config = {**NANO, "num_heads": 4, "iou_sigmoid": True}
    save_checkpoint(tmp_path / "model.pt", build(config), config, {})
    init = f"init_checkpoint={tmp_path / 'model.pt'}"
    found = train_command(monkeypatch, shards, tmp_path / "run", init)
    assert (found["num_heads"], found["iou_sigmoid"]) == (4, True)
    found = train_command(monkeypatch, shards, tmp_path / "b", init, "model=vit_nano", "model.num_heads=4")
    assert "iou_sigmoid" not in found, "it may be chosen"
