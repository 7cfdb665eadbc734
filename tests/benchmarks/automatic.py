"""All masks of a photograph: our automatic generator against segment_anything 1.0's, MobileSAM's weights, on a CPU.

    OMP_NUM_THREADS=2 python tests/benchmarks/automatic.py [--image FILE] [--weights FILE] [--theirs FILE]

Both with the settings that SamAutomaticMaskGenerator has by default (ours: configs/generator/released.yaml), a process each,
first ours, then theirs, which takes minutes. Both have our TinyViT, as segment_anything has none. Prints one line of JSON:
    speed_ratio         seconds of theirs / ours, from the decoded image to masks as COCO RLE
    memory_ratio        ours / theirs: peak resident size of the process, weights and libraries included
    match               fraction of their masks that one of ours matches at an IoU of at least 0.99
    extra               fraction of ours that match none of theirs
and the figures behind these: masks, seconds, cpu_seconds and megabytes of both, and where the seconds go.
With --side, one of the two writes its answer to a file, which --theirs takes in place of another run of theirs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measurement import peak_mb, print_figures, run_in_subprocess
from omegaconf import OmegaConf
from pycocotools import mask as coco_mask
from reference_models import reference_mobile_sam, segment_anything

from sam_train.checkpoint import load_checkpoint
from sam_train.config import build, config_dir
from sam_train.inference import GridMaskGenerator, Predictor
from sam_train.inference.mask_rasterizer import MaskRasterizer
from sam_train.model.mask_decoder import MaskDecoder

SHARED = Path(__file__).resolve().parents[3] / "shared"
MATCHED_AT_IOU = 0.99


def main() -> None:
    """Measure, or with --side do the part of one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=SHARED / "data" / "sam_examples" / "truck.jpg")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "mobile_sam" / "mobile_sam.pth")
    parser.add_argument("--side", choices=("ours", "theirs"), help="generate with this one, print its answer and end")
    parser.add_argument("--theirs", type=Path, help="what `--side theirs` printed before")
    arguments = parser.parse_args()
    for path in (arguments.image, arguments.weights):
        if not path.is_file():
            parser.error(f"{path} is not there: name another by --image and --weights")
    if arguments.side:
        print(json.dumps(answer(arguments.side, arguments.image, arguments.weights)))
        return
    command = (__file__, "--image", str(arguments.image), "--weights", str(arguments.weights), "--side")
    ours = run_in_subprocess(*command, "ours")
    theirs = json.loads(arguments.theirs.read_text()) if arguments.theirs else run_in_subprocess(*command, "theirs")
    print_figures(compared(ours, theirs))


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The figures of the two answers."""
    ious = coco_mask.iou(ours["masks"], theirs["masks"], [0] * len(theirs["masks"]))
    matched = np.asarray(ious).reshape(len(ours["masks"]), len(theirs["masks"])) >= MATCHED_AT_IOU
    both = {name: [ours[name], theirs[name]] for name in ("seconds", "cpu_seconds", "process_mb", "seconds_by_part")}
    return {
        "speed_ratio": theirs["seconds"] / ours["seconds"],
        "memory_ratio": ours["process_mb"] / theirs["process_mb"],
        "match": float(matched.any(0).mean()),
        "extra": float(1 - matched.any(1).mean()),
        "masks": [len(ours["masks"]), len(theirs["masks"])],
        **both,
        "threads": torch.get_num_threads(),
    }


def answer(side: str, image: Path, weights: Path) -> dict[str, Any]:
    """The masks of one side, what they cost, and where."""
    pixels = np.ascontiguousarray(cv2.imread(str(image))[:, :, ::-1])
    parts: dict[str, float] = {}
    generate = (ours if side == "ours" else theirs)(weights, parts)
    start, cpu = time.perf_counter(), time.process_time()
    masks = generate(pixels)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    parts["rest"] = seconds - sum(parts.values())
    return {
        "masks": masks,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "process_mb": peak_mb(),
        "seconds_by_part": {name: float(f"{value:.3g}") for name, value in parts.items()},
    }


Generate = Callable[[np.ndarray], list[dict[str, Any]]]


def ours(weights: Path, parts: dict[str, float]) -> Generate:
    """This project's, as sam-engine stage.generator=released has it."""
    model = load_checkpoint(weights, "cpu")
    threads = torch.get_num_threads()
    for place, name, part, num_threads in (
        (Predictor, "set_image", "encoder", 1),
        (MaskDecoder, "_prepare_image", "decoder", 1),
        (MaskDecoder, "_decode_rows", "decoder", threads),
        (MaskRasterizer, "stability_scores", "stability", threads),
        (MaskRasterizer, "boxes", "boxes", threads),
        (MaskRasterizer, "crop_logits", "patches", threads),
        (MaskRasterizer, "run_lengths", "rle", 1),
        (GridMaskGenerator, "_nms", "nms", 1),
    ):
        watch(place, name, part, parts, num_threads)
    generator = build(OmegaConf.load(Path(config_dir()) / "generator" / "released.yaml"))
    return lambda pixels: [mask.rle for mask in generator.generate(model, pixels)[0]]


def theirs(weights: Path, parts: dict[str, float]) -> Generate:
    """The released generator."""
    module = segment_anything().automatic_mask_generator
    model = reference_mobile_sam(weights)
    for place, name, part in (
        (model.image_encoder, "forward", "encoder"),
        (model.prompt_encoder, "forward", "decoder"),
        (model.mask_decoder, "forward", "decoder"),
        (model, "postprocess_masks", "upsampling"),
        (module, "calculate_stability_score", "stability"),
        (module, "batched_mask_to_box", "boxes"),
        (module, "mask_to_rle_pytorch", "rle"),
        (module, "batched_nms", "nms"),
    ):
        watch(place, name, part, parts)
    generator = module.SamAutomaticMaskGenerator(model, output_mode="coco_rle")
    return lambda pixels: [mask["segmentation"] for mask in generator.generate(pixels)]


def watch(place: Any, name: str, part: str, parts: dict[str, float], threads: int = 1) -> None:
    """Add the seconds that `place.name` takes to a part, shared out over the threads that call it side by side."""
    call, parts[part] = getattr(place, name), parts.get(part, 0.0)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            parts[part] += (time.perf_counter() - start) / threads

    setattr(place, name, timed)


if __name__ == "__main__":
    main()
