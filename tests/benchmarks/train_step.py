"""One training step on MobileSAM at 1024 pixels, compared with the same step written with segment_anything 1.0's modules.

    OMP_NUM_THREADS=2 python tests/benchmarks/train_step.py [--masks 8] [--corrections 8] [--weights mobile_sam.pth]
    OMP_NUM_THREADS=2 python tests/benchmarks/train_step.py --ours-only --images 2 --masks 16

1 image, 8 masks, 11 rounds (8 corrections, 2 without a new point), first prompts are points, losses on the 256 grid. "Theirs" is
the usual training code: one decoder call per image, the graphs of all rounds stored, one backward pass at the end. Both use the
same points, and each its own mask predictions. Both use this project's TinyViT, which segment_anything lacks. Prints one line of
JSON:

    speed_ratio              seconds of theirs / ours, each in its own process, one after the other
    memory_ratio             ours / theirs: increase of peak resident memory during the step
    max_gradient_difference  maximum over all weights of the gradient difference, relative to the weight's largest gradient
    loss_difference          relative difference of the losses
and the measurements from which these are computed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measurement import measure_memory, print_figures, run_in_subprocess, timed
from reference_models import reference_mask_decoder, reference_prompt_encoder
from torch import Tensor

from sam_train.checkpoint import initialize_from_checkpoint
from sam_train.losses import SamLoss
from sam_train.model import Sam
from sam_train.model.build import build_mobile_sam
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.structures import Batch, Prediction, Prompts
from sam_train.training import SamModule
from sam_train.training.step_metrics import StepMetricsAccumulator

SIZE = 1024


def main() -> None:
    """Measure both; with --only, run the measurement of one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 1), ("masks", 8), ("corrections", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", type=Path, help="released weights; random ones without")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--only", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print_figures(measure(arguments))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("images", "masks", "corrections")]
    options += [f"--weights={arguments.weights}"] if arguments.weights else []
    with TemporaryDirectory() as folder:
        into = Path(folder)
        runs = {
            who: run_in_subprocess(__file__, *options, f"--only={who}", f"--into={into}")
            for who in (("ours",) if arguments.ours_only else ("ours", "theirs"))
        }
        figures = {f"{who}_{name}": value for who, run in runs.items() for name, value in run.items()}
        if not arguments.ours_only:
            figures = compared(runs["ours"], runs["theirs"], into) | figures
    print_figures(figures | {"threads": torch.get_num_threads()})


def compared(ours: dict[str, float], theirs: dict[str, float], into: Path) -> dict[str, Any]:
    """Return the ratios and the differences of gradients and losses."""
    gradients = [torch.load(into / f"{who}.pt", weights_only=True) for who in ("ours", "theirs")]
    # The bias of keys adds the same value to all scores of a query, so softmax ignores it: its gradients are rounding errors.
    apart = {
        name: float((gradients[0][name] - theirs_).abs().max() / theirs_.abs().max())
        for name, theirs_ in gradients[1].items()
        if not name.endswith("k_proj.bias") and theirs_.abs().max() > 0
    }
    return {
        "speed_ratio": theirs["seconds"] / ours["seconds"],
        "memory_ratio": ours["memory_mb"] / theirs["memory_mb"],
        "max_gradient_difference": max(apart.values()),
        "loss_difference": abs(ours["loss"] - theirs["loss"]) / theirs["loss"],
    }


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one step of one implementation and write its gradients. Ours also writes its sampled points, which theirs reads."""
    torch.manual_seed(0)
    model = build_mobile_sam(freeze_batch_norm=True)
    if arguments.weights:
        initialize_from_checkpoint(model, arguments.weights)
    model.train()
    batch = make_batch(arguments.images, arguments.masks)
    points = Points(arguments.into / "points.pt", num_corrections=arguments.corrections)
    step = ours if arguments.only == "ours" else theirs
    seconds: list[float] = []
    losses: list[float] = []
    parts = (model, points) if arguments.only == "ours" else (*reference_of(model), points)
    memory, process = measure_memory(lambda: losses.append(timed(lambda: step(batch, *parts), seconds)))
    named = dict(model.named_parameters()) if arguments.only == "ours" else names_of(*parts[:3])
    torch.save({name: p.grad for name, p in named.items() if p.grad is not None}, arguments.into / f"{arguments.only}.pt")
    return {"seconds": seconds[0], "memory_mb": memory, "process_mb": process, "loss": losses[0]}


def make_batch(images: int, masks: int) -> Batch:
    """Return images of noise with brighter rectangles of many sizes as targets."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 160, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    targets = torch.zeros(images * masks, SIZE, SIZE, dtype=torch.bool)
    for number, target in enumerate(targets):
        top, left, height, width = torch.randint(40, 480, (4,), generator=generator).tolist()
        target[top : top + height, left : left + width] = True
        pixels[number // masks, :, target] += 10
    return Batch(
        keys=tuple(str(i) for i in range(images)),
        images=pixels,
        sizes_hw=torch.full((images, 2), SIZE),
        image_index=torch.arange(images).repeat_interleave(masks),
        target_masks=targets,
    )


class Points(PromptSimulator):
    """Prompt simulator that records its points, so that both implementations decode the same prompts."""

    def __init__(self, path: Path, *, num_corrections: int) -> None:
        super().__init__(num_corrections=num_corrections, num_mask_only_rounds=2, box_probability=0.0)
        self.path, self.seen = path, []

    def first_prompts(self, *arguments: Any) -> Prompts:
        """Return the simulated prompts and record their points."""
        return self._noted(super().first_prompts(*arguments))

    def next_prompts(self, *arguments: Any) -> Prompts:
        """Return the simulated prompts and record their points."""
        return self._noted(super().next_prompts(*arguments))

    def _noted(self, prompts: Prompts) -> Prompts:
        self.seen.append([prompts.points_xy, prompts.point_labels, torch.tensor(prompts.mask_logits is not None)])
        return prompts


class Step(SamModule):
    """The training module's step without a trainer."""

    global_step = 0  # type: ignore[assignment]

    def manual_backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        """Run a plain backward pass."""
        loss.backward(*arguments, **options)


def ours(batch: Batch, model: Sam, points: Points) -> float:
    """Return the mean loss of a round and compute its gradients, as `training_step` does."""
    module = Step(model, points, SamLoss(), OptimizerFactory())
    accumulator = StepMetricsAccumulator(batch.images.device)
    accumulator.add_batch(batch)
    module.backpropagate(batch, accumulator, offset=0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= len(batch.image_index)
    torch.save(points.seen, points.path)
    return float(accumulator.reduce().metrics()["loss"])


def reference_of(model: Sam) -> tuple[Any, Any, Any]:
    """Return our image encoder, and their prompt encoder and mask decoder with the same weights."""
    prompts, decoder = reference_prompt_encoder(), reference_mask_decoder()
    prompts.load_state_dict(model.prompt_encoder.state_dict())
    decoder.load_state_dict(model.mask_decoder.state_dict())
    return model, prompts.train(), decoder.train()


def names_of(model: Sam, prompts: Any, decoder: Any) -> dict[str, Any]:
    """Return their parameters under our names."""
    named = {f"image_encoder.{n}": p for n, p in model.image_encoder.named_parameters()}
    named |= {f"prompt_encoder.{n}": p for n, p in prompts.named_parameters()}
    return named | {f"mask_decoder.{n}": p for n, p in decoder.named_parameters()}


def theirs(batch: Batch, model: Sam, prompts: Any, decoder: Any, points: Points) -> float:
    """Run all rounds with one decoder call per image, then one backward pass. Return the mean loss of a round."""
    loss, module = SamLoss(), Step(model, points, SamLoss(), OptimizerFactory())
    targets = module._targets(batch.target_masks)
    embeddings = model.encode_images(batch.images, batch.sizes_hw)
    positions = prompts.get_dense_pe()
    rounds = torch.load(points.path, weights_only=True)[: points.num_corrections + 3]
    answers: list[Tensor | None] = [None] * len(batch.keys)
    total, losses = torch.zeros(()), []
    for number, (points_xy, labels, has_mask) in enumerate(rounds):
        for image in range(len(batch.keys)):
            own = batch.image_index == image
            clicks = [x[own][:, labels[0] >= 0] for x in (points_xy, labels)]  # its encoder adds the padding point itself
            sparse, dense = prompts(points=tuple(clicks), boxes=None, masks=answers[image] if has_mask else None)
            logits, iou = decoder(embeddings[image : image + 1], positions, sparse, dense, multimask_output=number == 0)
            prediction = Prediction(mask_logits=logits, iou_scores=iou)
            terms = loss(prediction, targets[own])
            total = total + terms.total * (own.sum() / len(own))
            losses.append(float(terms.total.detach()))
            answers[image] = replace(prediction.best(), iou_scores=iou).mask_logits.detach()
    total.backward()
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
