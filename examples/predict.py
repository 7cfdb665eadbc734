"""Predict masks of one image for a click or a box, and draw the best one.

python examples/predict.py --image photo.jpg --checkpoint mobile_sam.pth --point 500 375 --out mask.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from sam_train import load_predictor


def main() -> None:
    """Predict, print the candidates, write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt, mobile_sam.pth, sam_vit_b_01ec64.pth, ...")
    parser.add_argument("--point", type=float, nargs=2, metavar=("X", "Y"), help="pixels; the middle of the image by default")
    parser.add_argument("--box", type=float, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"))
    parser.add_argument("--out", type=Path, default=Path("mask.png"))
    arguments = parser.parse_args()

    image = np.asarray(Image.open(arguments.image).convert("RGB"))
    predictor = load_predictor(arguments.checkpoint)
    predictor.set_image(image)
    if arguments.box:
        masks, scores, _ = predictor.predict(box=arguments.box, multimask_output=False)
    else:
        point = arguments.point or [image.shape[1] / 2, image.shape[0] / 2]
        masks, scores, _ = predictor.predict(point_coords=[point], point_labels=[1])
    for mask, score in zip(masks, scores, strict=True):
        print(f"{int(mask.sum())} pixels, predicted IoU {score:.3f}")
    best = masks[scores.argmax()]
    drawn = np.where(best[..., None], (image // 2 + np.array([30, 144, 255]) // 2), image).astype(np.uint8)
    Image.fromarray(drawn).save(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
