"""Estimate the cost of a training run from its config alone.

    sam-train plan experiment=vit_h_sa1b plan.gpu=a100-80gb plan.num_gpus=256

Parameters, operations, saved activations and memory traffic are counted on fake tensors with the run's own code. Seconds are
the roofline of the device's data sheet divided by `plan.efficiency`, an assumption. Nothing here was measured on a GPU.
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
from sam_train.cost_model.step_cost import ForwardBackwardCost, StepCost, count_step
from sam_train.files import atomic_write_bytes
from sam_train.training.progress import format_seconds

MASK_DIVISORS = (1, 2, 4, 8)
"""The table of memory per image has a column for data.max_masks divided by each of these."""


def main() -> None:
    """Run `sam-train plan` on the process's arguments."""
    PLAN.main()


def command(cfg: DictConfig) -> None:
    """Print the estimated cost of the run that the composed config describes."""
    estimate_run_cost(cfg)


def estimate_run_cost(cfg: DictConfig) -> dict[str, Any]:
    """Print the estimated cost of a run, write it to `plan.out` if set, and return it as plain values.

    Raises ConfigError for an unknown GPU and for hardware that cannot run the config.
    """
    plain = to_plain(cfg)
    spec: dict[str, Any] = plain["plan"]
    device = get_device(spec.pop("gpu"))
    out = spec.pop("out")
    hardware = HardwareSpec(device=device, **spec)
    num_masks, images = int(plain["data"]["max_masks"]), int(plain["data"]["images_per_step"])
    hardware.images_per_gpu(images)  # raises before the slow counting
    with Progress(SpinnerColumn(), TextColumn("counting one step on fake tensors"), transient=True) as progress:
        progress.add_task("")
        step = count_step(plain, num_masks=num_masks)
        checkpointed = count_step(with_activation_checkpointing(plain), num_masks=num_masks)
    max_steps, images_per_pass = int(plain["trainer"]["max_steps"]), plain["training"].get("images_per_pass")
    estimate = estimate_cost(step, hardware, images_per_step=images, images_per_pass=images_per_pass, max_steps=max_steps)
    per_image = memory_per_image_gb({"none": step, "torch": checkpointed}, replace(hardware, num_gpus=1), num_masks)
    console = Console()
    console.print(cost_table(step, estimate, hardware, images, max_steps))
    console.print(memory_table(estimate, hardware))
    console.print(memory_per_image_table(per_image, hardware))
    document = {
        "plan": plain["plan"] | {"gpu": device.name},
        "parameters": step.parameters,
        **asdict(estimate),
        "memory_per_image_gb": per_image,
    }
    if out:
        atomic_write_bytes(Path(out), (json.dumps(document, indent=1) + "\n").encode())
    return document


def with_activation_checkpointing(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the config with activation checkpointing in the image encoder."""
    return cfg | {"model": cfg["model"] | {"activation_checkpointing": "torch"}}


def memory_per_image_gb(steps: dict[str, StepCost], hardware: HardwareSpec, num_masks: int) -> dict[str, dict[int, float]]:
    """Return the peak memory of one image on one GPU, in gigabytes, by kind of activation checkpointing and number of masks."""
    memory: dict[str, dict[int, float]] = {}
    for kind, step in steps.items():
        for divisor in MASK_DIVISORS:
            if num_masks % divisor:
                continue
            smaller = replace(
                step,
                first_round=_with_fewer_masks(step.first_round, divisor),
                later_round=_with_fewer_masks(step.later_round, divisor),
            )
            estimate = estimate_cost(smaller, hardware, images_per_step=1, images_per_pass=1, max_steps=1)
            memory.setdefault(kind, {})[num_masks // divisor] = sum(estimate.memory_gb.values())
    return memory


def _with_fewer_masks(cost: ForwardBackwardCost, divisor: int) -> ForwardBackwardCost:
    return replace(cost, saved_activation_bytes=cost.saved_activation_bytes // divisor)


def cost_table(step: StepCost, estimate: CostEstimate, hardware: HardwareSpec, images: int, max_steps: int) -> Table:
    """Return the table of parameters, operations, time and communication."""
    table = Table("cost", f"{hardware.num_gpus} x {hardware.device.name}", title="Run")
    for name, count in step.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:.2f} M")
    rounds = 1 + step.num_later_rounds
    table.add_row("step", f"{images} images x {step.num_masks} masks x {rounds} rounds, {estimate.step_tflop:,.1f} TFLOP")
    table.add_row("seconds per step, at the roofline", f"{estimate.roofline_s:.3f}")
    table.add_row(f"seconds per step, at {hardware.efficiency:.0%} of the roofline", f"{estimate.step_s:.3f}")
    table.add_row("communication per GPU and step", f"{estimate.communication_gb:.2f} GB, {estimate.communication_s:.3f} s")
    table.add_row("required loader throughput", f"{estimate.images_per_s:.1f} images per second")
    table.add_row(f"{max_steps:,} steps", f"{format_seconds(estimate.days * 86400)}, {estimate.gpu_hours:,.1f} GPU hours")
    return table


def memory_table(estimate: CostEstimate, hardware: HardwareSpec) -> Table:
    """Return the table of the peak memory of one GPU by part."""
    table = Table("memory of one GPU", "GB", title="Memory")
    for name, value in estimate.memory_gb.items():
        table.add_row(name, f"{value:.2f}")
    total = sum(estimate.memory_gb.values())
    verdict = "fits" if total <= hardware.device.memory_gb else "does not fit"
    table.add_row("total", f"{total:.2f} of {hardware.device.memory_gb:.0f}: {verdict}", end_section=True)
    return table


def memory_per_image_table(memory: dict[str, dict[int, float]], hardware: HardwareSpec) -> Table:
    """Return the table of the peak memory of one image on one GPU."""
    mask_counts = next(iter(memory.values()))
    title = f"One image on one {hardware.device.name}, GB"
    table = Table("activation_checkpointing", *(f"{count} masks" for count in mask_counts), title=title)
    for kind, by_masks in memory.items():
        cells = (f"{gb:.1f}" + ("" if gb <= hardware.device.memory_gb else " (too much)") for gb in by_masks.values())
        table.add_row(kind, *cells)
    return table


if __name__ == "__main__":
    main()
