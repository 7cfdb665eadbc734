"""Benchmark of the engine's overhead per image, and of its independence of the corpus size.

    OMP_NUM_THREADS=1 python tests/benchmarks/engine.py [--images 300]

Corpora of 1,000 and of 100,000 small photographs (crops of those in scikit-image's and scikit-learn's wheels, each of them many
times, as links) are annotated by a model that knows nothing: as many slices of 20 as make `--images`, spread over the corpus.
CPU seconds, so that a busy machine changes little. Prints one line of JSON:
    seconds_per_image   of both, without what comes before the first slice; flat_ratio: large corpus / small
    before_s            what comes before the first slice when the corpus was never listed, and again_s when it was
    grown_mb            resident size after the last slice less that after a third of them, in the large corpus
    annotate_share      of the seconds of an image, those that loading, model and masks take; the rest is the engine's
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hydra import compose, initialize_config_dir
from measurement import print_figures
from omegaconf import OmegaConf

from data_engine.engine import check_config, open_selected_images, run_provenance, select_slices
from data_engine.slices import EngineJob, SliceResult, Worker, with_absolute_paths
from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir, to_plain
from sam_train.data.synthetic.photographs import load_photographs, random_crop
from sam_train.shards import encode_jpeg

SIZES, DISTINCT, IMAGES_PER_SHARD = (1000, 100_000), 50, 20
GENERATOR = {"points_per_side": 4, "pred_iou_thresh": -100, "stability_score_thresh": 0, "min_region_area_px": 0}


def main() -> None:
    """Make the corpora, annotate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        save_model(folder / "model.pt")
        made = {size: measure(folder, corpus(folder, size), size, arguments.images) for size in SIZES}
    small, large = (made[size] for size in SIZES)
    per_image = [figures["seconds_per_image"] for figures in (small, large)]
    print_figures({**large, "seconds_per_image": per_image, "flat_ratio": per_image[1] / per_image[0]})


def corpus(folder: Path, size: int) -> Path:
    """`size` names of DISTINCT photographs, a thousand a folder."""
    chance, whole, files = np.random.default_rng(0), load_photographs(), []
    out = folder / f"corpus_{size}"
    for number in range(size):
        path = out / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            crop = random_crop(chance, whole[number % len(whole)], height=96, width=128, zoom=(0.5, 1), rotate=False)
            path.write_bytes(encode_jpeg(crop.astype(np.uint8)))
            files.append(path)
        else:
            os.link(files[number % DISTINCT], path)
    return out


def save_model(path: Path) -> None:
    """The smallest model, untrained."""
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml"))
    save_checkpoint(path, build(config), config, {})


class NoProgress:
    """Progress listener that ignores everything."""

    def start_image(self, origin: str) -> None:
        """Implement `ProgressListener`."""

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        """Implement `ProgressListener`."""


def measure(folder: Path, source: Path, size: int, num_images: int) -> dict[str, Any]:
    """List, then make slices in this process."""
    generator = [f"stage.generator.{name}={value}" for name, value in GENERATOR.items()]
    overrides = [f"source={source}", f"checkpoint={folder / 'model.pt'}", f"out={folder / f'out_{size}'}", "privacy=none"]
    overrides += [f"images_per_shard={IMAGES_PER_SHARD}", "threads=1", "num_prefetch=0", *generator]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("engine", overrides=overrides)
    job = EngineJob(config=with_absolute_paths(to_plain(cfg)), provenance=run_provenance(cfg, check_config(cfg)))
    before = []
    for _ in range(2):
        began = time.process_time()
        listing, _ = job.folder.prepare(job.provenance, lambda: open_selected_images(cfg), images_per_shard=IMAGES_PER_SHARD)
        left = job.folder.missing_slices(select_slices(len(listing), None))
        before.append(time.process_time() - began)
    worker, num_slices = Worker(job, device="cpu", threads=1), num_images // IMAGES_PER_SHARD
    wanted = left[:: len(left) // (num_slices + 1)][: num_slices + 1]
    worker.process_slice(wanted[0], NoProgress())  # loads the model
    watch, resident = NoProgress(), []
    began = time.process_time()
    made: list[SliceResult] = []
    for index in wanted[1:]:
        made.append(worker.process_slice(index, watch))
        resident.append(psutil.Process().memory_info().rss / 1e6)
    seconds = (time.process_time() - began) / sum(result.images for result in made)
    return {
        "seconds_per_image": seconds,
        "before_s": before[0],
        "again_s": before[1],
        "grown_mb": resident[-1] - resident[len(resident) // 3],
        "annotate_share": annotate_seconds(worker, wanted[-1]) / seconds,
    }


def annotate_seconds(worker: Worker, index: int) -> float:
    """Return the seconds per image of a slice for loading and annotation alone, without shard, table, manifest and claim."""
    source = worker.privacy.redact_source(worker.job.folder.listing().slice(index))
    began = time.process_time()
    for reference in source.references:
        worker.infer_image(source.load(reference))()
    return (time.process_time() - began) / len(source.references)


if __name__ == "__main__":
    main()
