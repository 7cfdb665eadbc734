"""What a training run would cost, from its config alone.

    sam-train plan experiment=vit_h_sa1b plan.gpu=a100-80gb plan.num_gpus=256

Parameters, operations, kept activations and memory traffic are counted on fake tensors with the run's own code; seconds are
the roofline of the device's data sheet, divided by `plan.efficiency`, an assumption. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from sam_train.cli.commands import PLAN
from sam_train.config import to_plain
from sam_train.cost_model.cost_estimate import CostEstimate, HardwareSpec, estimate_cost
from sam_train.cost_model.devices import get_device
from sam_train.cost_model.step_cost import StepCost, count_step
from sam_train.files import atomic_write_bytes

FEWER_MASKS = (1, 2, 4, 8)
"""The table of what fits divides data.max_masks by these."""


def main() -> None:
    """Run `sam-train plan` on the process's arguments."""
    PLAN.main()


def command(cfg: DictConfig) -> None:
    """Do what the composed config says."""
    estimate_run_cost(cfg)


def estimate_run_cost(cfg: DictConfig) -> dict[str, Any]:
    """Print the plan; what was printed, as plain numbers."""
    plain = to_plain(cfg)
    wanted: dict[str, Any] = plain["plan"]
    device = get_device(wanted.pop("gpu"))
    out = wanted.pop("out")
    plan = HardwareSpec(device=device, **wanted)
    masks, images = int(plain["data"]["max_masks"]), int(plain["data"]["images_per_step"])
    plan.images_per_gpu(images)  # refused before the counting starts
    with Progress(SpinnerColumn(), TextColumn("counting one step on fake tensors"), transient=True) as progress:
        progress.add_task("")
        step = count_step(plain, num_masks=masks)
        leaner = count_step(checkpointed(plain), num_masks=masks)
    steps, images_per_pass = int(plain["trainer"]["max_steps"]), plain["training"].get("images_per_pass")
    result = estimate_cost(step, plan, images_per_step=images, images_per_pass=images_per_pass, max_steps=steps)
    fits = memory_per_image_gb({"none": step, "torch": leaner}, replace(plan, num_gpus=1), masks)
    console = Console()
    for table in (cost_table(step, result, plan, images, steps), memory_table(result, plan), memory_per_image_table(fits, plan)):
        console.print(table)
    document = {"plan": plain["plan"] | {"gpu": device.name}, "parameters": step.parameters, **asdict(result), "fits": fits}
    if out:
        atomic_write_bytes(Path(out), (json.dumps(document, indent=1) + "\n").encode())
    return document


def checkpointed(cfg: dict[str, Any]) -> dict[str, Any]:
    """The same run with the encoder's activations made again in the backward pass."""
    return cfg | {"model": cfg["model"] | {"activation_checkpointing": "torch"}}


def memory_per_image_gb(steps: dict[str, StepCost], plan: HardwareSpec, masks: int) -> dict[str, dict[int, float]]:
    """Gigabytes of one image on one GPU, by activation checkpointing and by masks of the image."""
    found: dict[str, dict[int, float]] = {}
    for name, step in steps.items():
        for share in FEWER_MASKS:
            if masks % share:
                continue
            smaller = replace(
                step,
                first_round=replace(step.first_round, saved_activation_bytes=step.first_round.saved_activation_bytes // share),
                later_round=replace(step.later_round, saved_activation_bytes=step.later_round.saved_activation_bytes // share),
            )
            one = estimate_cost(smaller, plan, images_per_step=1, images_per_pass=1, max_steps=1)
            found.setdefault(name, {})[masks // share] = sum(one.memory_gb.values())
    return found


def cost_table(step: StepCost, result: CostEstimate, plan: HardwareSpec, images: int, max_steps: int) -> Table:
    """Parameters, operations, time and communication."""
    table = Table("cost", f"{plan.num_gpus} x {plan.device.name}", title="The run")
    for name, count in step.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:.2f} M")
    rounds = 1 + step.num_later_rounds
    table.add_row("a step", f"{images} images x {step.num_masks} masks x {rounds} rounds, {result.step_tflop:,.1f} TFLOP")
    table.add_row("seconds a step, at the roofline", f"{result.roofline_s:.3f}")
    table.add_row(f"seconds a step, at {plan.efficiency:.0%} of it", f"{result.step_s:.3f}")
    table.add_row("gradients, for each GPU and step", f"{result.communication_gb:.2f} GB, {result.communication_s:.3f} s")
    table.add_row("the loader must bring", f"{result.images_per_s:.1f} images a second")
    table.add_row(f"{max_steps:,} steps", f"{result.days:.2f} days, {result.gpu_hours:,.0f} GPU hours")
    return table


def memory_table(result: CostEstimate, plan: HardwareSpec) -> Table:
    """Memory of one GPU by part."""
    table = Table("memory of one GPU", "GB", title="The memory")
    for name, value in result.memory_gb.items():
        table.add_row(name, f"{value:.2f}")
    total = sum(result.memory_gb.values())
    verdict = "fits" if total <= plan.device.memory_gb else "does not fit"
    table.add_row("together", f"{total:.2f} of {plan.device.memory_gb:.0f}: {verdict}", end_section=True)
    return table


def memory_per_image_table(fits: dict[str, dict[int, float]], plan: HardwareSpec) -> Table:
    """What one image costs on one such GPU."""
    masks = next(iter(fits.values()))
    table = Table(
        "activation_checkpointing", *(f"{count} masks" for count in masks), title=f"One image on one {plan.device.name}, GB"
    )
    for name, by_masks in fits.items():
        cells = (f"{gb:.1f}" + ("" if gb <= plan.device.memory_gb else " (too much)") for gb in by_masks.values())
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    main()
