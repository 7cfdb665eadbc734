"""A registered name stands for its file wherever a checkpoint is given, and the file carries the model's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors import safe_open

from data_engine.annotate import create_application
from data_engine.cycle.pipeline import Action, Cycle
from data_engine.cycle.run_cycle import check_config
from data_engine.cycle_folder import START_STEP, CycleFolder
from data_engine.engine import run_stage
from sam_train import evaluate, export
from sam_train.checkpoint import checkpoint_hash, load_checkpoint, read_checkpoint, save_safetensors
from sam_train.cli.overrides import check_inputs
from sam_train.config import build, config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.files import file_sha256
from sam_train.inference import load_predictor
from sam_train.shards import iterate_samples, write_shard
from sam_train.train import train_model
from sam_train.weights import is_weights_name, names, resolve_checkpoint

TRAIN = ["model=vit_nano", "threads=1", "trainer.max_steps=1", "trainer.accelerator=cpu", "wandb.enabled=false", "~callbacks"]
TRAIN += ["prompts={num_corrections: 1, num_mask_only_rounds: 0}", "+trainer.enable_progress_bar=false"]
CONFIG: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))  # type: ignore[assignment]
CONFIG |= {"high_res_features": True, "pixel_statistics": "image"}


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A starter of vit_nano's size, with a setting that no tensor shape tells, in place of the packaged one."""
    monkeypatch.setattr(names, "_FOLDER", tmp_path / "package")
    path = tmp_path / "package" / "starter.safetensors"
    save_safetensors(path, build(CONFIG), CONFIG, {"steps": 7})
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "shards" / "sa_000000.tar", [make_sample(index) for index in range(2)])
    return tmp_path / "shards"


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose(name, overrides=list(overrides))


def test_the_file_holds_config_and_provenance(starter: Path) -> None:
    with safe_open(starter, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["sam_train"]) == {"format": "sam-train/1", "config": CONFIG, "provenance": {"steps": 7}}
    content = read_checkpoint("starter")
    assert (content.config, content.provenance) == (CONFIG, {"steps": 7})
    assert checkpoint_hash("starter") == file_sha256(starter)
    model = load_predictor("starter").model
    assert model.has_high_res_features
    assert model.pixel_statistics == "image"


def test_half_precision_halves_the_file(starter: Path, tmp_path: Path) -> None:
    half, model = tmp_path / "half.safetensors", load_checkpoint("starter")
    save_safetensors(half, model, CONFIG, {}, half=True)
    assert half.stat().st_size < 0.6 * starter.stat().st_size
    state = load_checkpoint(half).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(torch.equal(state[name], tensor.half().float()) for name, tensor in model.state_dict().items())


def test_half_precision_rejects_weights_out_of_range(starter: Path, tmp_path: Path) -> None:
    model = load_checkpoint(starter)
    model.mask_decoder.iou_token.weight.data[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight exceed the range of float16"):
        save_safetensors(tmp_path / "half.safetensors", model, CONFIG, {}, half=True)
    assert not (tmp_path / "half.safetensors").exists()


def test_a_file_that_would_predict_otherwise_is_not_written(starter: Path, tmp_path: Path) -> None:
    """A config that does not belong to the weights is such a case."""
    model, path = load_checkpoint(starter), tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match=r"read back, predicts otherwise than the model"):
        save_safetensors(path, model, CONFIG | {"pixel_statistics": "released"}, {})
    with pytest.raises(CheckpointError, match=r"read back as a model of image_size 128, but the model has 64"):
        save_safetensors(path, build(tiny := mobile_config(64)), tiny | {"image_size": 128}, {})
    assert list(tmp_path.glob("*.safetensors")) == []


def mobile_config(image_size: int) -> dict[str, Any]:
    sizes = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_sizes": [7, 3, 5, 2]}
    target = {"_target_": "sam_train.model.build.build_mobile_sam", "image_size": image_size}
    return {**target, **sizes, "prompt_dim": 16, "decoder_mlp_dim": 16}


def test_export_and_evaluation(starter: Path, shards: Path, tmp_path: Path) -> None:
    (path,) = export.run(composed("export", "checkpoint=starter", f"out={tmp_path / 'out'}", "format=safetensors", "half=true"))
    assert read_checkpoint(path).config == CONFIG
    (path,) = export.run(composed("export", "checkpoint=starter", f"out={tmp_path / 'out'}", "format=pt"))
    assert read_checkpoint(path).provenance == {"steps": 7}
    thresholds = ["format=pt", "thresholds={pred_iou_thresh: 0.5}"]
    (path,) = export.run(composed("export", "checkpoint=starter", f"out={tmp_path / 'out'}", *thresholds))
    assert read_checkpoint(path).provenance == {"steps": 7, "generator": {"pred_iou_thresh": 0.5}}
    results = tmp_path / "results.json"
    assert evaluate.run(composed("evaluate", "checkpoint=starter", f"shards={shards}", f"out={results}"))
    assert json.loads(results.read_bytes())["checkpoint"] == file_sha256(starter)
    with pytest.raises(ConfigError, match=r"half=true is for format=safetensors, got format=pt"):
        export.run(composed("export", "checkpoint=starter", f"out={tmp_path / 'out'}", "format=pt", "half=true"))


def test_training_starts_from_it_or_learns_from_it(starter: Path, shards: Path, tmp_path: Path) -> None:
    common = [*TRAIN, f"data.shards={shards}", "+model.high_res_features=true", "+model.pixel_statistics=image"]
    for key in ("init_checkpoint", "teacher"):
        run_dir = tmp_path / key
        train_model(composed("train", *common, f"run_dir={run_dir}", f"{key}=starter", "optim.lr=0"))
        content = read_checkpoint(run_dir / "model.pt")
        assert content.provenance["init" if key == "init_checkpoint" else key] == file_sha256(starter)
        trained, name = content.state, "mask_decoder.iou_token.weight"
        assert torch.equal(trained[name], load_checkpoint(starter).state_dict()[name])


def test_engine_and_annotation_server(starter: Path, shards: Path, tmp_path: Path) -> None:
    thresholds = ["stage.generator.points_per_side=2", "stage.generator.pred_iou_thresh=-100"]
    thresholds += ["stage.generator.stability_score_thresh=0", "stage.generator.min_region_area_px=0"]
    common = ["checkpoint=starter", "privacy=none", f"out={tmp_path / 'out'}"]
    places = [f"source={shards}", "report=false"]
    run_stage(composed("engine", "stage=fully_automatic", *common, *places, *thresholds))
    (shard,) = sorted((tmp_path / "out").glob("*.tar"))
    masks = [mask for sample in iterate_samples([shard]) for mask in sample.record.masks]
    assert {mask.provenance.checkpoint for mask in masks if mask.provenance} == {file_sha256(starter)}
    _, context, _ = create_application(composed("annotate", *common[:2], f"out={tmp_path / 'people'}", f"corpus={shards}"))
    assert context.embedding_service is not None
    context.embedding_service.close()
    assert context.embedding_service.checkpoint == file_sha256(starter)


class NoProcesses:
    def start(self, title: str, module: str, *arguments: str) -> None:
        raise AssertionError(f"{title}: no process is expected")


def test_initial_model_of_a_cycle(starter: Path, tmp_path: Path) -> None:
    cfg = composed("cycle", "experiment=quickstart", f"run_dir={tmp_path / 'run'}", "initial_model.checkpoint=starter")
    check_config(cfg)
    cycle = Cycle(cfg, CycleFolder(tmp_path / "run"), NoProcesses())
    assert "init_checkpoint=starter" in cycle._train_overrides(Action("train", START_STEP))
    copy = cycle._candidate(Action("evaluate", START_STEP))
    assert copy.is_relative_to(tmp_path / "run")
    assert checkpoint_hash(copy) == file_sha256(starter)


def test_an_absent_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"the weights 'starter' are not part of this installation: .*starter\.safetensors"):
        load_predictor("starter")


def test_a_path_is_never_a_name(tmp_path: Path) -> None:
    assert is_weights_name("starter")
    assert not is_weights_name("./starter")
    assert not is_weights_name(Path("starter"))
    assert resolve_checkpoint(Path("starter")) == Path("starter")
    assert resolve_checkpoint("~/model.pt") == Path.home() / "model.pt"
    check_inputs(OmegaConf.create({"checkpoint": "starter"}), {"checkpoint": "a file"})
    with pytest.raises(ConfigError, match="checkpoint=startr: no such file or folder"):
        check_inputs(OmegaConf.create({"checkpoint": "startr"}), {"checkpoint": "a file"})
