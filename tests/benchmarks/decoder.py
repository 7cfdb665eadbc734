"""Mask decoder compared with segment_anything 1.0's: 64 single-point prompts on one image at SAM's size, on a CPU.

    OMP_NUM_THREADS=2 python tests/benchmarks/decoder.py [--prompts 64] [--rounds 3]

Prints one line of JSON:
    speed_ratio                median seconds of theirs / ours, masks of all prompts, measured alternately in one process
    train_speed_ratio          the same for forward and backward (rounds: one)
    memory_ratio               ours / theirs: increase of peak resident memory during decoding, each in its own process
    train_memory_ratio         the same for forward and backward
    process_memory_ratio       ours / theirs: peak resident memory of the decoding process
    max_relative_difference    maximum difference of mask logits relative to the largest of theirs; differing_pixels: of the masks
    max_gradient_difference    maximum difference of any gradient of weights and embeddings, relative to its largest value
    floor_share                time that the matrix products of a plain decoder would take at torch.mm's speed / our time
and the measurements from which these are computed. Both have the same random weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from measurement import measure_memory, print_figures, run_in_subprocess, timed
from reference_models import reference_mask_decoder
from torch import Tensor, nn

from sam_train.model.mask_decoder import MaskDecoder
from sam_train.model.prompt_encoder import DensePromptEmbedding
from sam_train.model.transformer import TwoWayTransformer

CHANNELS, GRID, HEADS, MLP = 256, 64, 8, 2048
# Billions of operations for a prompt of 7 tokens with projections folded into the prompt tokens and dense image tokens:
# eight products with the 4,096 image tokens (56 x 256 each) minus three in the shared first layer, and the upscaling.
FLOOR_GFLOP = 2e-9 * 4096 * (7 * 56 * 256 + 256 * 256 + 4 * 64 * 128 + 16 * 32 * 3)


def main() -> None:
    """Measure both; with --memory, measure the memory of one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, of which the median is reported")
    parser.add_argument(
        "--memory", choices=("ours", "theirs"), help="print the memory peaks in MB of this implementation and exit"
    )
    parser.add_argument("--train", action="store_true", help="with --memory: forward and backward")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    inputs = Inputs(arguments.prompts)
    if arguments.memory:
        print(json.dumps(peak_memory_mb(arguments.memory, inputs, train=arguments.train)))
        return
    figures = measure_speed(inputs, arguments.rounds) | measure_training(inputs)
    for prefix, train in (("", []), ("train_", ["--train"])):
        command = (__file__, "--prompts", str(arguments.prompts), *train, "--memory")
        (ours, our_process), (theirs, their_process) = (run_in_subprocess(*command, which) for which in ("ours", "theirs"))
        figures |= {f"{prefix}memory_ratio": ours / theirs, f"{prefix}memory_mb": [ours, theirs]}
        figures |= {f"{prefix}process_memory_ratio": our_process / their_process}
    print_figures(figures | {"threads": torch.get_num_threads()})


class Inputs:
    """Random embeddings of one image and of single-point prompts with the padding point of the released encoder."""

    def __init__(self, num_prompts: int) -> None:
        self.image, self.positions = torch.randn(1, CHANNELS, GRID, GRID), torch.randn(CHANNELS, GRID, GRID)
        self.sparse, self.no_mask = torch.randn(num_prompts, 2, CHANNELS), torch.randn(CHANNELS)
        self.index = torch.zeros(num_prompts, dtype=torch.long)


def build() -> tuple[MaskDecoder, nn.Module]:
    """Return our decoder and theirs with the same weights."""
    theirs = reference_mask_decoder()
    ours = MaskDecoder(dim=CHANNELS, transformer=TwoWayTransformer(depth=2, dim=CHANNELS, num_heads=HEADS, mlp_dim=MLP))
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def call_ours(decoder: nn.Module, x: Inputs) -> tuple[Tensor, Tensor]:
    """Return mask logits and IoU scores of our decoder."""
    answer = decoder(x.image, x.index, x.positions, x.sparse, DensePromptEmbedding(None, (), x.no_mask), multimask_output=True)
    return answer.mask_logits, answer.iou_scores


def call_theirs(decoder: nn.Module, x: Inputs) -> tuple[Tensor, Tensor]:
    """Return mask logits and IoU scores of their decoder."""
    dense = x.no_mask[:, None, None].expand(len(x.sparse), -1, GRID, GRID)
    return decoder(x.image, x.positions[None], x.sparse, dense, multimask_output=True)


def measure_speed(x: Inputs, rounds: int) -> dict[str, Any]:
    """Return the durations of both, measured alternately with torch.mm, and the differences of their outputs."""
    ours, theirs = build()
    square = torch.randn(4096, 4096)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "sgemm": []}
    with torch.inference_mode():
        call_ours(ours, Inputs(4))
        for _ in range(rounds):
            timed(lambda: square @ square, seconds["sgemm"])
            actual = timed(lambda: call_ours(ours, x), seconds["ours"])
            expected = timed(lambda: call_theirs(theirs, x), seconds["theirs"])
    medians = {name: median(values) for name, values in seconds.items()}
    gflops = 2e-9 * 4096**3 / medians["sgemm"]
    return {
        "speed_ratio": medians["theirs"] / medians["ours"],
        "max_relative_difference": float((actual[0] - expected[0]).abs().max() / expected[0].abs().max()),
        "differing_pixels": int(((actual[0] > 0) != (expected[0] > 0)).sum()),
        "floor_share": FLOOR_GFLOP * len(x.sparse) / gflops / medians["ours"],
        "seconds": [medians["ours"], medians["theirs"]],
        "sgemm_gflops": gflops,
    }


def measure_training(x: Inputs) -> dict[str, Any]:
    """Return the durations of forward and backward pass, and the differences of the gradients."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    gradients = {}
    for name, decoder, call in zip(seconds, build(), (call_ours, call_theirs), strict=True):
        call(decoder, Inputs(4))[0].sum().backward()
        gradients[name] = timed(lambda d=decoder, c=call: train_step(d, c, x), seconds[name])  # type: ignore[misc]
    apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients.values(), strict=True) if b.abs().max() > 1e-6]
    return {
        "train_speed_ratio": seconds["theirs"][0] / seconds["ours"][0],
        "train_seconds": [seconds["ours"][0], seconds["theirs"][0]],
        "max_gradient_difference": max(apart),
    }


def train_step(decoder: nn.Module, call: Callable[[nn.Module, Inputs], tuple[Tensor, Tensor]], x: Inputs) -> list[Tensor]:
    """Return the gradients of the embeddings and of every weight that has one."""
    decoder.zero_grad()
    leaves = [x.image.detach().requires_grad_(), x.sparse.detach().requires_grad_()]
    with_leaves = Inputs(0)
    with_leaves.__dict__.update(x.__dict__ | {"image": leaves[0], "sparse": leaves[1]})
    logits, scores = call(decoder, with_leaves)
    (logits.square().mean() + scores.square().sum()).backward()
    tensors = [*leaves, *(p for _, p in sorted(decoder.named_parameters()))]
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]


def peak_memory_mb(which: str, x: Inputs, *, train: bool) -> tuple[float, float]:
    """Return the memory increase of one call and the peak of the process, in MB."""
    decoder, call = dict(zip(("ours", "theirs"), zip(build(), (call_ours, call_theirs), strict=True), strict=True))[which]
    if train:
        return measure_memory(lambda: train_step(decoder, call, x))
    with torch.inference_mode():
        return measure_memory(lambda: call(decoder, x))


if __name__ == "__main__":
    main()
