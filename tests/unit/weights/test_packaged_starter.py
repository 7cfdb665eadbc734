"""The starter model inside the package: its size, its architecture, what it was trained on, and that it segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sam_train import evaluate
from sam_train.checkpoint import load_checkpoint, read_checkpoint
from sam_train.config import config_dir
from sam_train.data.synthetic import compose_scene, write_corpus
from sam_train.inference import GridMaskGenerator
from sam_train.masks import mask_iou
from sam_train.weights import resolve_checkpoint

MAX_BYTES = 6_000_000


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return compose(name, overrides=list(overrides))


def test_size_and_architecture() -> None:
    assert resolve_checkpoint("starter").stat().st_size <= MAX_BYTES
    expected = OmegaConf.to_container(composed("train", "model=starter").model)
    assert read_checkpoint("starter").config == expected, "model=starter init_checkpoint=starter continues its training"


def test_its_experiment_sees_no_photograph_and_no_other_model() -> None:
    cfg = composed("train", "experiment=starter")
    assert cfg.synthetic.material == "patterns"
    assert cfg.data.shards == f"{cfg.synthetic.folder}/*.tar"
    assert (cfg.init_checkpoint, cfg.teacher, cfg.data.sources) == (None, None, None)


def test_it_segments_scenes_of_photographs_that_it_never_saw(tmp_path: Path) -> None:
    """Up to six objects in each of ten scenes; random weights reach 0.05."""
    write_corpus(tmp_path / "scenes", num_images=10, seed=1000, height=256, width=256, images_per_shard=10)
    out = tmp_path / "results.json"
    evaluate.run(
        composed("evaluate", "checkpoint=starter", f"shards={tmp_path}/scenes", f"out={out}", "protocol.masks_per_image=6")
    )
    results = json.loads(out.read_bytes())
    assert results["num_masks"] > 40
    assert results["miou_at_1"] > 0.4
    assert results["miou_at_3"] > 0.6
    assert results["oracle_at_1"] - results["miou_at_1"] < 0.2, "the best of the three masks has a high predicted IoU"


def test_its_thresholds_keep_masks() -> None:
    """The paper's thresholds keep nothing of a model that was trained for an hour; its own find a part of the objects."""
    model, thresholds = load_checkpoint("starter"), read_checkpoint("starter").provenance["generator"]
    found, kept_by_the_paper = [], 0
    for seed in range(1001, 1005):
        scene = compose_scene(seed, height=256, width=240)
        masks, _ = GridMaskGenerator(points_per_side=16, **thresholds).generate(model, scene.image)
        generated = torch.from_numpy(np.stack([mask.mask for mask in masks]))
        found += [float(mask_iou(generated, target[None]).max()) > 0.5 for target in torch.from_numpy(scene.masks)]
        kept_by_the_paper += len(GridMaskGenerator(points_per_side=16).generate(model, scene.image)[0])
    assert np.mean(found) > 0.15
    assert kept_by_the_paper == 0
