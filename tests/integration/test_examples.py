"""The scripts in examples/ run as they are documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sample
from omegaconf import OmegaConf
from PIL import Image

from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir
from sam_train.shards import decode_jpeg, write_shard


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an image, and shards."""
    root = tmp_path_factory.mktemp("examples")
    config = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "model" / "vit_nano.yaml"))
    torch.manual_seed(6)  # random weights whose one mask is large enough to be kept
    save_checkpoint(root / "model.pt", build(config), config, {})
    sample = make_sample(0, height=60, width=80)
    Image.fromarray(decode_jpeg(sample[1])).save(root / "photo.png")
    write_shard(root / "shards" / "sa_000000.tar", [sample, make_sample(1)])
    return root


def run_example(name: str, *arguments: str, folder: Path) -> str:
    script = Path(config_dir()).parent / "examples" / name
    done = subprocess.run([sys.executable, str(script), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_predict(world: Path) -> None:
    common = ("--image", "photo.png", "--checkpoint", "model.pt", "--out", "mask.png")
    assert run_example("predict.py", *common, "--point", "40", "30", folder=world).count("predicted IoU") == 3
    with Image.open(world / "mask.png") as image:
        assert image.size == (80, 60)
    assert run_example("predict.py", *common, "--box", "10", "10", "50", "50", folder=world).count("predicted IoU") == 1


def test_automatic_masks(world: Path) -> None:
    thresholds = ("--pred-iou-thresh", "-10", "--stability-score-thresh", "0", "--points-per-side", "4")
    out = run_example("automatic_masks.py", "--image", "photo.png", "--checkpoint", "model.pt", *thresholds, folder=world)
    annotations = json.loads((world / "masks" / "masks.json").read_text())
    assert out.startswith(f"{len(annotations)} masks")
    assert annotations, out
    assert set(annotations[0]) == {"segmentation", "area", "predicted_iou", "stability_score"}
    with Image.open(world / "masks" / "overlay.png") as image:
        assert np.asarray(image).shape == (60, 80, 3)


def test_import_and_train(world: Path) -> None:
    out = run_example("import_and_train.py", "--out", "trained", "--steps", "2", folder=world)
    assert "miou_at_1" in out.splitlines()[-1]
    assert (world / "trained" / "run" / "model.pt").is_file()


def test_simulated_annotation(world: Path) -> None:
    out = run_example("simulated_annotation.py", "--out", "annotated", "--num-images", "2", folder=world)
    assert "masks by {'simulated'" in out.splitlines()[-1]


def test_evaluate(world: Path) -> None:
    out = run_example("evaluate.py", "--checkpoint", "model.pt", "--shards", "shards", folder=world)
    assert "miou_at_1: " in out
    assert "num_images: 2" in out
