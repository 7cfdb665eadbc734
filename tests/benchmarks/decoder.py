"""64 single-point prompts on one image at SAM's own size: our mask decoder against segment_anything 1.0's, on a CPU.

    OMP_NUM_THREADS=2 python tests/benchmarks/decoder.py [--prompts 64] [--rounds 3]

Prints one line of JSON:
    speed_ratio                median seconds of theirs / ours, masks of all prompts, measured in turns in one process
    train_speed_ratio          the same for forward and backward (rounds: one)
    memory_ratio               ours / theirs: peak resident size during a decoding less that before it, a process each
    train_memory_ratio         the same for forward and backward
    process_memory_ratio       ours / theirs: peak resident size of the process that decodes
    max_relative_difference    of mask logits, to the largest of theirs; differing_pixels: of the masks
    max_gradient_difference    of the gradients of every weight and of the embeddings, each to its largest value
    floor_share                the time that a plain decoder's products of matrices would take at torch.mm's speed / our time
and the figures behind these. Both have the same random weights.
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
# Billions of operations a prompt of 7 tokens where projections are folded into the tokens, and the image stream is dense:
# eight products with its 4,096 tokens (56 x 256 each) less three in the shared first layer, and the upscaling.
FLOOR_GFLOP = 2e-9 * 4096 * (7 * 56 * 256 + 256 * 256 + 4 * 64 * 128 + 16 * 32 * 3)


def main() -> None:
    """Measure, or with --memory do the part of one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="turns of which the medians are taken")
    parser.add_argument("--memory", choices=("ours", "theirs"), help="print the peaks in MB of this one and end")
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
    """Embeddings of one image, and of single points with the padding point of the released encoder."""

    def __init__(self, num_prompts: int) -> None:
        self.image, self.positions = torch.randn(1, CHANNELS, GRID, GRID), torch.randn(CHANNELS, GRID, GRID)
        self.sparse, self.no_mask = torch.randn(num_prompts, 2, CHANNELS), torch.randn(CHANNELS)
        self.index = torch.zeros(num_prompts, dtype=torch.long)


def build() -> tuple[MaskDecoder, nn.Module]:
    """Ours and theirs with the same weights."""
    theirs = reference_mask_decoder()
    ours = MaskDecoder(dim=CHANNELS, transformer=TwoWayTransformer(depth=2, dim=CHANNELS, num_heads=HEADS, mlp_dim=MLP))
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


def call_ours(decoder: nn.Module, x: Inputs) -> tuple[Tensor, Tensor]:
    """Mask logits and IoU scores."""
    answer = decoder(x.image, x.index, x.positions, x.sparse, DensePromptEmbedding(None, (), x.no_mask), multimask_output=True)
    return answer.mask_logits, answer.iou_scores


def call_theirs(decoder: nn.Module, x: Inputs) -> tuple[Tensor, Tensor]:
    """The same."""
    dense = x.no_mask[:, None, None].expand(len(x.sparse), -1, GRID, GRID)
    return decoder(x.image, x.positions[None], x.sparse, dense, multimask_output=True)


def measure_speed(x: Inputs, rounds: int) -> dict[str, Any]:
    """Seconds of both in turns, beside torch.mm, and how far the answers are apart."""
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
    """Seconds of forward and backward, and how far the gradients are apart."""
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
    """Gradients of the embeddings and of every weight that has one."""
    decoder.zero_grad()
    leaves = [x.image.detach().requires_grad_(), x.sparse.detach().requires_grad_()]
    with_leaves = Inputs(0)
    with_leaves.__dict__.update(x.__dict__ | {"image": leaves[0], "sparse": leaves[1]})
    logits, scores = call(decoder, with_leaves)
    (logits.square().mean() + scores.square().sum()).backward()
    tensors = [*leaves, *(p for _, p in sorted(decoder.named_parameters()))]
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]


def peak_memory_mb(which: str, x: Inputs, *, train: bool) -> tuple[float, float]:
    """Of one call above what was there before it, and of the process."""
    decoder, call = dict(zip(("ours", "theirs"), zip(build(), (call_ours, call_theirs), strict=True), strict=True))[which]
    if train:
        return measure_memory(lambda: train_step(decoder, call, x))
    with torch.inference_mode():
        return measure_memory(lambda: call(decoder, x))


if __name__ == "__main__":
    main()
