"""Image encoder compared with segment_anything 1.0's: ViT-B at 1024 pixels, one image, on a CPU in single precision.

    OMP_NUM_THREADS=2 python tests/benchmarks/encoder.py [--rounds 3]

Prints one line of JSON:
    speed_ratio              median seconds of theirs / ours, measured in turns in one process
    memory_ratio             ours / theirs: peak resident size during one forward pass less that before it, a process each
    process_memory_ratio     ours / theirs: peak resident size of those processes, weights and libraries included
    gflops_share             ours / torch.mm on 4096 x 4096 matrices, measured in the same turns
    max_relative_difference  of the image embeddings, to the largest of theirs
and the figures behind these. Both have the same random weights, tables of relative positions not left at zero.
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

import torch
from measurement import measure_memory, print_figures, run_in_subprocess, timed
from reference_models import reference_image_encoder
from torch import Tensor, nn

from sam_train.model.image_encoder import ImageEncoder

VIT_B: dict[str, Any] = {
    "image_size": 1024,
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "global_attn_indexes": (2, 5, 8, 11),
    "window_size": 14,
    "out_chans": 256,
}
SGEMM_SIDE = 4096


def main() -> None:
    """Measure both; with --memory, measure the memory of one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of which the medians are taken")
    parser.add_argument("--memory", choices=("ours", "theirs"), help="print the two peaks in MB of this one and end")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(peak_memory_mb(build(arguments.memory))))
        return
    (ours, our_process), (theirs, their_process) = (
        run_in_subprocess(__file__, "--memory", which) for which in ("ours", "theirs")
    )
    figures = measure_speed(arguments.rounds) | {
        "memory_ratio": ours / theirs,
        "process_memory_ratio": our_process / their_process,
        "forward_mb": [ours, theirs],
        "process_mb": [our_process, their_process],
    }
    print_figures(figures | {"threads": torch.get_num_threads()})


def build(which: str) -> nn.Module:
    """Return our encoder or theirs in evaluation mode; both have the same weights."""
    torch.manual_seed(0)
    encoder = reference_image_encoder(**VIT_B) if which == "theirs" else ImageEncoder(**VIT_B).eval()
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(encoder.named_parameters()):
        # Magnitudes similar to those of a trained model: norms near one, other weights small enough to avoid saturation.
        nn.init.normal_(parameter.detach(), float(parameter.ndim == 1), 0.02, generator=generator)
    return encoder


def measure_speed(rounds: int) -> dict[str, Any]:
    """Return the durations of both, measured alternately with a matrix product, and the differences of their outputs."""
    ours, theirs = build("ours"), build("theirs")
    image, square = noise_image(), torch.randn(SGEMM_SIDE, SGEMM_SIDE)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "sgemm": []}
    with torch.inference_mode():
        for _ in range(rounds):
            timed(lambda: square @ square, seconds["sgemm"])
            actual = timed(lambda: ours(image), seconds["ours"])
            expected = timed(lambda: theirs(image), seconds["theirs"])
    medians = {name: median(values) for name, values in seconds.items()}
    sgemm = 2e-9 * SGEMM_SIDE**3 / medians["sgemm"]
    return {
        "speed_ratio": medians["theirs"] / medians["ours"],
        "gflops_share": encoder_gflop() / medians["ours"] / sgemm,
        "max_relative_difference": float((actual - expected).abs().max() / expected.abs().max()),
        "seconds": [medians["ours"], medians["theirs"]],
        "sgemm_gflops": sgemm,
        "encoder_gflop": encoder_gflop(),
    }


def encoder_gflop() -> float:
    """Return the encoder's billions of operations in matrix products, without norms, softmax, GELU and sums."""
    grid, window, dim = VIT_B["image_size"] // VIT_B["patch_size"], VIT_B["window_size"], VIT_B["embed_dim"]
    tokens, padded = grid**2, (-(-grid // window) * window) ** 2
    num_global = len(VIT_B["global_attn_indexes"])

    def attention(queries: int, side: int) -> int:
        return queries * dim * (2 * side**2 + 2 * side)  # scores and values; both axes of relative positions

    products = num_global * attention(tokens, grid) + (VIT_B["depth"] - num_global) * attention(padded, window)
    products += VIT_B["depth"] * tokens * 12 * dim**2
    products += tokens * (3 * VIT_B["patch_size"] ** 2 * dim + dim * VIT_B["out_chans"] + 9 * VIT_B["out_chans"] ** 2)
    return 2e-9 * products


def peak_memory_mb(encoder: nn.Module) -> tuple[float, float]:
    """Return the memory increase of one forward pass and the peak of the process, in MB."""
    image = noise_image()
    with torch.inference_mode():
        return measure_memory(lambda: encoder(image))


def noise_image() -> Tensor:
    """Return one normalised image of noise."""
    return torch.randn(1, 3, VIT_B["image_size"], VIT_B["image_size"], generator=torch.Generator().manual_seed(1))


if __name__ == "__main__":
    main()
