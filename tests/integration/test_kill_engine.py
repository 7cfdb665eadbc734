"""An engine run that is killed twenty times ends with the masks of an uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_engine.ledger import read_ledger
from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir
from sam_train.data.synthetic.photographs import load_photographs, random_crop
from sam_train.shards import encode_jpeg

NUM_PHOTOGRAPHS, NUM_KILLS = 500, 20
PERMISSIVE = [  # thresholds that masks of random weights pass
    "stage.generator.points_per_side=2",
    "stage.generator.pred_iou_thresh=-100",
    "stage.generator.stability_score_thresh=0",
    "stage.generator.max_area_fraction=null",
    "stage.generator.min_region_area_px=0",
]


def photographs(folder: Path) -> Path:
    folder.mkdir()
    rng, images = np.random.default_rng(0), load_photographs()
    for number in range(NUM_PHOTOGRAPHS):
        size = {"height": 64, "width": 96} if number % 3 else {"height": 96, "width": 64}
        crop = random_crop(rng, images[number % len(images)], **size, zoom=(0.5, 1), rotate=False)
        (folder / f"{number:03d}.jpg").write_bytes(encode_jpeg(crop.astype(np.uint8)))
    (folder / "truncated.jpg").write_bytes((folder / "000.jpg").read_bytes()[:-99])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Return all files but the ledger, which holds durations."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "ledger.json"}


@pytest.mark.slow
def test_killed_run_ends_with_the_masks_of_an_uninterrupted_run(repo_root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(tmp_path / "model.pt", build(model), model, {})
    source = photographs(tmp_path / "photographs")
    overrides = [
        f"source={source}",
        f"checkpoint={tmp_path / 'model.pt'}",
        "images_per_shard=5",
        "threads=1",
        "report=false",
        "privacy=none",
    ]
    results = {}
    for name, kills in (("unbroken", 0), ("killed", NUM_KILLS)):
        command = [sys.executable, str(repo_root / "tests" / "kill_utils.py"), str(kills), *overrides, *PERMISSIVE]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, f"out={tmp_path / name}"], capture_output=True, text=True, check=False, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results[name] = json.loads(done.stdout.splitlines()[-1])
        assert results[name]["status"] == 0, done.stderr
    num_shards = results["killed"]["num_shards"]
    assert len(num_shards) == NUM_KILLS
    assert num_shards == sorted(num_shards), "a finished slice was removed"
    assert 0 < num_shards[-1] < NUM_PHOTOGRAPHS / 5, f"the last kill must be during the run: {num_shards}"
    assert files(tmp_path / "killed") == files(tmp_path / "unbroken")
    ledger = read_ledger(tmp_path / "killed")
    assert (ledger.images, ledger.skipped) == (NUM_PHOTOGRAPHS, {"unreadable": 1})
    assert ledger.masks >= NUM_PHOTOGRAPHS
