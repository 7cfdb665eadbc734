"""Find masks of everything in an image; write them in SA-1B's form, and an overlay.

python examples/automatic_masks.py --image photo.jpg --checkpoint mobile_sam.pth --out masks
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sam_train import AutomaticMaskGenerator, load_predictor


def main() -> None:
    """Generate, print the counts, write OUT/masks.json and OUT/overlay.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--points-per-side", type=int, default=16, help="more find smaller objects, and take longer")
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88, help="lower it for a model trained on few images")
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("masks"))
    arguments = parser.parse_args()

    image = np.asarray(Image.open(arguments.image).convert("RGB"))
    generator = AutomaticMaskGenerator(
        load_predictor(arguments.checkpoint).model,
        points_per_side=arguments.points_per_side,
        pred_iou_thresh=arguments.pred_iou_thresh,
        stability_score_thresh=arguments.stability_score_thresh,
    )
    masks, dropped = generator.generate_with_counts(image)  # `generate` returns the masks as dictionaries
    print(f"{len(masks)} masks; candidates dropped by filter: {dict(dropped)}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    annotations = [
        {
            "segmentation": mask.rle,
            "area": mask.area,
            "predicted_iou": round(float(mask.predicted_iou), 4),
            "stability_score": round(float(mask.stability_score), 4),
        }
        for mask in masks
    ]
    (arguments.out / "masks.json").write_text(json.dumps(annotations))
    overlay = image.astype(float)
    colours = np.random.default_rng(0).uniform(0, 255, (len(masks), 3))
    for mask, colour in zip(sorted(masks, key=lambda m: -m.area), colours, strict=True):
        overlay[mask.mask] = overlay[mask.mask] / 2 + colour / 2
    Image.fromarray(overlay.astype(np.uint8)).save(arguments.out / "overlay.png")
    print(f"wrote {arguments.out / 'masks.json'} and {arguments.out / 'overlay.png'}")


if __name__ == "__main__":
    main()
