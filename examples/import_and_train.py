"""Import images with label maps, train on them, and read the metrics.

    python examples/import_and_train.py --images IMAGES --labels LABELS --out runs/mine

Without --images it draws a small data set of discs first, so that it runs as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def draw_discs(folder: Path, num_images: int = 10) -> tuple[Path, Path]:
    """Write images of discs and their label maps (0 is background, 1 ... are instances)."""
    rng = np.random.default_rng(0)
    images, labels = folder / "images", folder / "labels"
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:96, :128]
    for index in range(num_images):
        image = rng.integers(0, 60, (96, 128, 3)).astype(np.uint8)
        label = np.zeros((96, 128), np.uint8)
        for instance in range(1, 5):
            inside = (x - rng.uniform(15, 113)) ** 2 + (y - rng.uniform(15, 81)) ** 2 < rng.uniform(6, 14) ** 2
            image[inside] = rng.integers(120, 255, 3)
            label[inside] = instance
        Image.fromarray(image).save(images / f"{index:03}.png")
        Image.fromarray(label).save(labels / f"{index:03}.png")
    return images, labels


def run(*command: str) -> None:
    """Run one of the console commands that stand beside this Python."""
    program, *arguments = command
    subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], check=True)


def main() -> None:
    """Import, train, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path, help="label maps named as the images")
    parser.add_argument("--out", type=Path, default=Path("runs/import_and_train"))
    parser.add_argument("--steps", type=int, default=200, help="training steps; 1,000 and more for a useful model")
    arguments = parser.parse_args()
    out = arguments.out
    images, labels = (arguments.images, arguments.labels) if arguments.images else draw_discs(out / "discs")

    shards = out / "shards"
    sources = ("--images", str(images), "--labels", str(labels))
    run("sam-data", "import", "label_maps", *sources, "--out", str(shards), "--holdout", "0.3")
    run(
        "sam-train",
        *("model=vit_nano", "losses=from_scratch", "optim=from_scratch", f"data.shards={shards}/train", f"run_dir={out}/run"),
        *("data.images_per_step=2", "data.max_masks=8", "prompts.num_corrections=2", "prompts.num_mask_only_rounds=1"),
        *("trainer.accelerator=cpu", f"trainer.max_steps={arguments.steps}", "wandb.enabled=false"),
    )
    run("sam-evaluate", f"checkpoint={out}/run/model.pt", f"shards={shards}/heldout", f"out={out}/metrics.json")
    metrics = json.loads((out / "metrics.json").read_text())
    print({name: value for name, value in metrics.items() if "miou" in name})


if __name__ == "__main__":
    main()
