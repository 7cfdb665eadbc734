"""Every form in which weights are stored is found and read: folders, indices, wrappers of other programs, runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from data_engine.cycle.pipeline import copy_checkpoint
from sam_train import export
from sam_train.checkpoint import (
    RUN_KEY,
    checkpoint_hash,
    export_weights,
    initialize_from_checkpoint,
    load_checkpoint,
    read_checkpoint,
)
from sam_train.config import config_dir
from sam_train.errors import CheckpointError
from sam_train.files import file_sha256
from sam_train.inference import load_predictor
from sam_train.model import Sam, huggingface
from sam_train.model.build import build_sam
from sam_train.shards import write_shard
from sam_train.train import train_model
from sam_train.weights import checkpoint_files

VIT: dict[str, Any] = {"image_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 3, "global_attn_indexes": [1]}
VIT |= {"window_size": 3, "prompt_dim": 32, "decoder_mlp_dim": 16}


@pytest.fixture
def model() -> Sam:
    return build_sam(**VIT).eval()


def same(path: Path | str, model: Sam) -> bool:
    """Whether the checkpoint is the model, by `load_checkpoint`, `load_predictor` and `init_checkpoint`."""
    expected, other = model.state_dict(), build_sam(**VIT)
    initialize_from_checkpoint(other, path)
    read = [load_checkpoint(path).state_dict(), load_predictor(path).model.state_dict(), other.state_dict()]
    return all(state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in state) for state in read)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPERS = {
    "MedSAM": lambda s: {"model": s, "optimizer": {"state": {0: torch.zeros(1)}}, "epoch": 3},
    "MedSAM on several GPUs": lambda s: {"model": prefixed(s, "module."), "epoch": 3},
    "micro-sam": lambda s: {"model_state": prefixed(s, "sam."), "decoder_state": {"a.weight": torch.zeros(2)}, "iteration": 5},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "state_dict in model": lambda s: {"model": {"state_dict": prefixed(s, "model.")}},
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "compiled encoder": lambda s: {n.replace("image_encoder.", "image_encoder._orig_mod."): t for n, t in s.items()},
    "DDP of a compiled module": lambda s: prefixed(s, "module._orig_mod.model."),
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(3)}, "pytorch-lightning_version": "2.6.0", "epoch": 0,
    },
    "Hugging Face in a trainer": lambda s: prefixed(huggingface.convert_to_huggingface(s), "module.model."),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_other_programs(wrapper: str, model: Sam, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(WRAPPERS[wrapper](dict(model.state_dict())), path)
    assert same(path, model)
    assert same(str(path), model)


def test_an_unknown_model_inside_a_wrapper_is_named_without_it(tmp_path: Path) -> None:
    torch.save({"model": prefixed(nn.Linear(1, 1).state_dict(), "module.")}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth holds 2 tensors \(weight, bias \.\.\.\) of an unknown model"):
        load_checkpoint(tmp_path / "other.pth")


class Trainer:
    """An object that a program stores beside the weights."""


def test_python_objects_beside_the_weights_are_not_loaded(model: Sam, tmp_path: Path) -> None:
    torch.save({"model_state": model.state_dict(), "init": Trainer()}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"save the model alone: torch\.save\(model\.state_dict\(\), FILE\)") as error:
        load_checkpoint(tmp_path / "best.pt")
    assert "\x1b" not in str(error.value)


def huggingface_folder(model: Sam, folder: Path, *, suffix: str, parts: int) -> Path:
    """Write a folder of Hugging Face's, with the weights in one file or in parts with an index."""
    export_weights(model, folder)
    (folder / "model.safetensors").unlink()
    state = huggingface.convert_to_huggingface(dict(model.state_dict()))
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = list(state)
    chunks = [names[i::parts] for i in range(parts)]
    weight_map = {}
    for i, chunk in enumerate(chunks, start=1):
        file = folder / (f"{stem}{suffix}" if parts == 1 else f"{stem}-{i:05d}-of-{parts:05d}{suffix}")
        part = {name: state[name].contiguous() for name in chunk}
        safetensors.torch.save_file(part, file, {"format": "pt"}) if suffix == ".safetensors" else torch.save(part, file)
        weight_map |= dict.fromkeys(chunk, file.name)
    if parts > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("parts", [1, 3])
def test_folders_of_hugging_face(suffix: str, parts: int, model: Sam, tmp_path: Path) -> None:
    folder = huggingface_folder(model, tmp_path / "folder", suffix=suffix, parts=parts)
    assert same(folder, model)
    assert len(checkpoint_files(folder)) == parts
    before = checkpoint_hash(folder)
    copy = copy_checkpoint(str(folder), tmp_path / "cycle")
    assert copy.name == "model.pt"
    assert same(copy, model)
    assert read_checkpoint(copy).provenance == {"copied_from": before}
    last = checkpoint_files(folder)[-1]
    last.write_bytes(last.read_bytes() + b"x")
    assert checkpoint_hash(folder) != before, "the hash is that of all parts"


def test_an_index_names_files_beside_it_only(model: Sam, tmp_path: Path) -> None:
    folder = huggingface_folder(model, tmp_path / "folder", suffix=".bin", parts=2)
    index = folder / "pytorch_model.bin.index.json"
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks pytorch_model-00002-of-00002\.bin"):
        load_checkpoint(folder)
    for name in ("../elsewhere.bin", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="expected the name of a file beside it"):
            load_checkpoint(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is not an index of weights"):
        load_checkpoint(folder)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"folder holds no weights: give a run \(its folder, model\.pt or \.ckpt\)"):
        load_checkpoint(folder)


def config_of_run(shards: Path, run_dir: Path, *overrides: str) -> Any:
    values = [
        "model=vit_nano",
        "threads=1",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "wandb.enabled=false",
        "~callbacks",
    ]
    values += ["prompts={num_corrections: 1, num_mask_only_rounds: 0}", "+trainer.enable_progress_bar=false", "~callbacks"]
    values += [
        "checkpoint_every_n_steps=2",
        "optim.warmup_steps=0",
        "optim.lr=1e-2",
        f"data.shards={shards}",
        f"run_dir={run_dir}",
    ]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose("train", overrides=[*values, *overrides])


@pytest.mark.parametrize("kind", ["weights", "ema", "lora"])
def test_a_run_is_read_from_its_folder_and_its_checkpoints(kind: str, tmp_path: Path) -> None:
    """last.ckpt is the model of model.pt after the last step, with EMA and adapters, in the run folder and elsewhere."""
    write_shard(tmp_path / "shards" / "sa_000000.tar", [make_sample(index) for index in range(2)])
    run_dir, overrides = tmp_path / "run", {"weights": [], "ema": ["training.ema_decay=0.5"], "lora": ["lora=attention"]}[kind]
    if kind == "lora":
        pytest.importorskip("peft", reason="needs peft: pip install '.[lora]'")
        train_model(config_of_run(tmp_path / "shards", tmp_path / "base"))
        overrides.append(f"init_checkpoint={tmp_path / 'base'}")
    train_model(config_of_run(tmp_path / "shards", run_dir, *overrides))
    expected = load_checkpoint(run_dir / "model.pt").state_dict()
    shutil.copy(run_dir / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt")
    document = torch.load(tmp_path / "moved.ckpt", weights_only=True)
    document.pop(RUN_KEY)  # as an earlier version wrote it
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    shutil.copy(run_dir / "config.yaml", tmp_path / "old")
    torch.save(document, tmp_path / "old" / "checkpoints" / "best.ckpt")
    assert checkpoint_hash(run_dir) == file_sha256(run_dir / "model.pt")
    for path in (run_dir, run_dir / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt", tmp_path / "old/checkpoints/best.ckpt"):
        content, state = read_checkpoint(path), load_checkpoint(path).state_dict()
        assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in expected.items())
        assert (content.provenance["steps"], content.provenance["run"]) == (2, "train")
    (run_dir / "model.pt").unlink()
    assert checkpoint_files(run_dir) == [run_dir / "checkpoints" / "last.ckpt"]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("export", overrides=[f"checkpoint={run_dir}", f"out={tmp_path / 'out'}", "format=safetensors"])
    (path,) = export.run(cfg)
    state = load_checkpoint(path).state_dict()
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in expected.items())


def test_a_ckpt_of_another_place_without_config(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.a": torch.zeros(1)}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds 1 tensors .* of an unknown model"):
        load_checkpoint(tmp_path / "a.ckpt")
