"""One click on an image that is already encoded: our ONNX decoder against the one that segment_anything 1.0 exports.

    OMP_NUM_THREADS=2 python tests/benchmarks/onnx_decoder.py [--rounds 8] [--size 1024 1024] [--all-masks]

ViT-B's decoder (256 channels, a grid of 64 x 64, 8 heads, MLP 2048) with the same random weights, in onnxruntime with two
threads and otherwise default options, in turns of six calls each, the first of which warms up and is not counted.
Both output one mask (`return_single_mask`, as browser demos need it; --all-masks: four), upscaled to --size. Theirs is
exported with the settings of its script: opset 17, by tracing. Prints one line of JSON:

    speed_ratio                median seconds of theirs / ours
    low_res_speed_ratio        the same without upscaling to the size of the image: the decoder proper
    seconds, low_res_seconds   ours and theirs
    max_difference             of low_res_masks, and max_value, the largest of theirs
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from measurement import print_figures, timed
from reference_models import reference_sam, segment_anything
from torch import nn

from sam_train.inference.export import ExportOptions, decoder_model
from sam_train.model.build import build_sam

Arrays = dict[str, np.ndarray]
THREADS, TURN = 2, 6
# The encoder takes no part: as small as it can be.
ENCODER: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 1, "global_attn_indexes": (0,)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--all-masks", action="store_true")
    arguments = parser.parse_args()
    inputs = click(arguments.size)
    with TemporaryDirectory() as name:
        sessions = {path.stem: open_session(path) for path in write_models(Path(name), not arguments.all_masks)}
    seconds = measure(sessions, inputs, arguments.rounds)
    ours, theirs = (dict(zip(names(sessions[who]), run(sessions[who], inputs), strict=True)) for who in ("ours", "theirs"))
    report = {
        "speed_ratio": seconds["theirs"] / seconds["ours"],
        "low_res_speed_ratio": seconds["theirs_low"] / seconds["ours_low"],
        "seconds": [seconds["ours"], seconds["theirs"]],
        "low_res_seconds": [seconds["ours_low"], seconds["theirs_low"]],
        "max_difference": float(np.abs(ours["low_res_masks"] - theirs["low_res_masks"]).max()),
        "max_value": float(np.abs(theirs["low_res_masks"]).max()),
        "size": list(arguments.size),
        "masks": 4 if arguments.all_masks else 1,
        "threads": THREADS,
    }
    print_figures(report)


def write_models(folder: Path, single: bool) -> list[Path]:
    """ours.onnx, theirs.onnx, and both without the upscaling."""
    torch.manual_seed(0)
    reference = reference_sam(image_size=1024, **ENCODER)
    for parameter in reference.parameters():
        nn.init.normal_(parameter.detach(), float(parameter.ndim == 1), 0.02)
    ours = build_sam(**ENCODER).eval()
    ours.load_state_dict(reference.state_dict())
    paths = [folder / f"{name}.onnx" for name in ("ours", "ours_low", "theirs", "theirs_low")]
    onnx.save(decoder_model(ours, ExportOptions(return_single_mask=single)), paths[0])
    onnx.save(decoder_model(ours, ExportOptions(return_single_mask=single), full_size=False), paths[1])
    export_theirs(segment_anything().onnx.SamOnnxModel(reference, return_single_mask=single), paths[2])
    proper = [*list(click((1, 1)))[:-1]], ["low_res_masks", "iou_predictions"]
    onnx.utils.extract_model(str(paths[2]), str(paths[3]), *proper)
    return paths


def export_theirs(model: nn.Module, path: Path) -> None:
    """Export as scripts/export_onnx_model.py of segment-anything does."""
    inputs = {name: torch.from_numpy(array) for name, array in click((1500, 2250)).items()}
    points = {1: "num_points"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the released script silences the tracer, too
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            path,
            opset_version=17,
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": points, "point_labels": points},
            dynamo=False,
        )


def click(size: Any) -> Arrays:
    """A click with its padding point, no mask."""
    return {
        "image_embeddings": np.random.default_rng(0).standard_normal((1, 256, 64, 64), np.float32),
        "point_coords": np.array([[[500, 375], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Two threads, everything else as it comes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def measure(sessions: dict[str, onnxruntime.InferenceSession], inputs: Arrays, rounds: int) -> dict[str, float]:
    """Median seconds a call. A pause before each turn lets the other session's threads go to sleep."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            time.sleep(0.005)
            for call in range(TURN):
                timed(lambda session=session: run(session, inputs), seconds[name] if call else [])
    return {name: median(values) for name, values in seconds.items()}


def run(session: onnxruntime.InferenceSession, inputs: Arrays) -> list[np.ndarray]:
    """All outputs, of those inputs that the session has."""
    return session.run(None, {known.name: inputs[known.name] for known in session.get_inputs()})


def names(session: onnxruntime.InferenceSession) -> list[str]:
    """Return the names of the outputs."""
    return [output.name for output in session.get_outputs()]


if __name__ == "__main__":
    main()
