"""Loading a checkpoint returns a model or raises CheckpointError with the reason, and never executes its content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sam_train.checkpoint import FORMAT, checkpoint_hash, load_checkpoint, load_weights, save_checkpoint
from sam_train.config import build
from sam_train.errors import CheckpointError
from sam_train.model import Sam

CONFIG: dict[str, Any] = {
    "_target_": "sam_train.model.build.build_sam",
    "image_size": 32,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
}


@pytest.fixture
def model() -> Sam:
    return build(CONFIG)


@pytest.fixture
def document(model: Sam) -> dict[str, Any]:
    return {"format": FORMAT, "model": model.state_dict(), "config": CONFIG, "provenance": {}}


def saved(document: Any, folder: Path) -> Path:
    torch.save(document, folder / "model.pt")
    return folder / "model.pt"


def test_round_trip(model: Sam, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine" / "model.pt"
    save_checkpoint(path, model, CONFIG, {"steps": 3, "config": "abc"})
    loaded = load_checkpoint(path)
    assert not loaded.training
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    written = torch.load(path, weights_only=True)
    assert written.keys() == {"format", "model", "config", "provenance"}
    assert written["config"] == CONFIG
    assert written["provenance"] == {"steps": 3, "config": "abc"}
    assert os.listdir(path.parent) == ["model.pt"], "nothing is left beside it"


def test_a_failed_save_leaves_the_old_file(model: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, CONFIG, {})
    before = checkpoint_hash(path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, model, CONFIG, {"not for a file": lambda: None})
    assert checkpoint_hash(path) == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_missing_unexpected_and_misshapen_weights_are_named(model: Sam) -> None:
    state = dict(model.state_dict())
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.extra"] = torch.zeros(1)
    state["image_encoder.pos_embed"] = torch.zeros(1, 7, 7, 16)
    before = model.image_encoder.pos_embed.clone()
    with pytest.raises(CheckpointError) as error:
        load_weights(model, state, origin="theirs.pt")
    message = str(error.value)
    assert message.startswith("theirs.pt does not fit the model: ")
    assert "missing mask_decoder.iou_token.weight" in message
    assert "unexpected mask_decoder.extra" in message
    assert "image_encoder.pos_embed has shape (1, 7, 7, 16), expected (1, 2, 2, 16)" in message
    assert torch.equal(model.image_encoder.pos_embed, before)


def test_counts_mismatches_beyond_the_first_five(model: Sam) -> None:
    with pytest.raises(CheckpointError, match=f"; and {len(model.state_dict()) - 5} more$"):
        load_weights(model, {}, origin="empty.pt")


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_rejects_a_pickle_that_executes_code(document: dict[str, Any], tmp_path: Path) -> None:
    proof = tmp_path / "it_ran"
    path = saved(document | {"provenance": Bomb(proof)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.pt .*checkpoint"):
        load_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the bomb of this test is one"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "sam_train.shards.write_shard",
        "sam_train.config.build",
        "sam_train.model.build.nn.Linear",
        "sam_train.modelling.Sam",
        "pytorch_lightning.Trainer",
    ],
)
def test_rejects_a_config_target_outside_the_model(target: str, document: dict[str, Any], tmp_path: Path) -> None:
    path = saved(document | {"config": {"_target_": target}}, tmp_path)
    with pytest.raises(CheckpointError, match="its config does not build a model") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert target in str(error.value)


def test_rejects_a_nested_target(document: dict[str, Any], tmp_path: Path) -> None:
    config = CONFIG | {"global_attn_indexes": [{"_target_": "os.getcwd"}]}
    with pytest.raises(CheckpointError, match=r"os\.getcwd"):
        load_checkpoint(saved(document | {"config": config}, tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "sam_train.model.layers.MLP", "in_dim": 2, "hidden_dim": 2, "out_dim": 2, "num_layers": 2},
        CONFIG | {"_partial_": True},
        CONFIG | {"embed_dim": 17},
        {"_target_": "sam_train.model.build.build_sam"},
        {},
    ],
    ids=["a layer", "partial", "bad numbers", "too few", "empty"],
)
def test_rejects_a_config_that_does_not_build_a_sam(config: Any, document: dict[str, Any], tmp_path: Path) -> None:
    path = saved(document | {"config": config}, tmp_path)
    with pytest.raises(CheckpointError, match=r"its config (builds a .*, expected a Sam|does not build a model)"):
        load_checkpoint(path)


@pytest.mark.parametrize("part", ["model", "config"])
@pytest.mark.parametrize("value", [None, [1, 2], "sam_train.model.build.build_sam"])
def test_names_a_missing_part(part: str, value: Any, document: dict[str, Any], tmp_path: Path) -> None:
    path = saved({k: v for k, v in (document | {part: value}).items() if v is not None}, tmp_path)
    with pytest.raises(CheckpointError, match=rf"model\.pt: its '{part}' is missing or not a dictionary"):
        load_checkpoint(path)


def test_names_weights_that_are_not_tensors(document: dict[str, Any], tmp_path: Path) -> None:
    weights = document["model"] | {"mask_decoder.iou_token.weight": "seven"}
    with pytest.raises(CheckpointError, match=r"not tensors: \['mask_decoder\.iou_token\.weight'\]"):
        load_checkpoint(saved(document | {"model": weights}, tmp_path))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": "sam-train/0"}, "has format 'sam-train/0', this version reads 'sam-train/1'"),
        ({}, r"holds 0 tensors \(none \.\.\.\) of an unknown model"),
        ([1], "holds a list, expected weights"),
        ({"epoch": 3}, r"not tensors: \['epoch'\]"),
        (nn.Linear(1, 1).state_dict(), r"holds 2 tensors \(weight, bias \.\.\.\) of an unknown model"),
    ],
)
def test_rejects_another_format(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(document, tmp_path))


def test_rejects_a_truncated_file(model: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model, CONFIG, {})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"model\.pt .*checkpoint"):
        load_checkpoint(path)


def test_rejects_a_missing_file(tmp_path: Path) -> None:
    for function in (load_checkpoint, checkpoint_hash):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pt"):
            function(tmp_path / "nowhere.pt")


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x" * (1 << 20) + b"tail")
    assert checkpoint_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
