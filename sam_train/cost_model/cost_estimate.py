"""Memory, time and communication of a run on given hardware, from the counted cost of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam_train.cost_model.op_counter import Device
from sam_train.cost_model.step_cost import StepCost
from sam_train.errors import ConfigError

FP32_BYTES = 4
ADAMW_STATE_BYTES = 2 * FP32_BYTES
CONTEXT_GB = 1.0
"""Memory of CUDA's context and of the workspaces of its libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """Estimated cost of a run. A gigabyte is 1e9 bytes."""

    memory_gb: dict[str, float]
    """Peak memory of one GPU, by part."""
    step_tflop: float
    """Operations of one step on all GPUs, 1e12."""
    roofline_s: float
    """Seconds of one step at the limits of the device's data sheet, without communication."""
    step_s: float
    """Seconds of one step at the assumed efficiency, with communication."""
    communication_gb: float
    """Bytes that one GPU sends in a step, in gigabytes."""
    communication_s: float
    images_per_s: float
    days: float
    gpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSpec:
    """The GPUs, how the model is sharded over them, and the assumed efficiency; see configs/plan.yaml.

    Raises ConfigError for values out of range.
    """

    device: Device
    num_gpus: int
    shard_optimizer: bool
    shard_encoder: bool
    efficiency: float
    interconnect_gb_per_s: float

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or not 0 < self.efficiency <= 1 or self.interconnect_gb_per_s <= 0:
            raise ConfigError(
                f"plan.num_gpus={self.num_gpus} must be at least 1, plan.efficiency={self.efficiency} in (0, 1], and "
                f"plan.interconnect_gb_per_s={self.interconnect_gb_per_s} above 0"
            )

    def images_per_gpu(self, images_per_step: int) -> int:
        """Return the number of images per GPU. Raises ConfigError if the images of a step cannot be divided evenly."""
        if images_per_step % self.num_gpus:
            raise ConfigError(
                f"data.images_per_step={images_per_step} is not a multiple of plan.num_gpus={self.num_gpus}: change one of them"
            )
        return images_per_step // self.num_gpus


def estimate_cost(
    step: StepCost, hardware: HardwareSpec, *, images_per_step: int, images_per_pass: int | None, max_steps: int
) -> CostEstimate:
    """Return the estimated cost of a run of `max_steps` steps.

    images_per_step: number of images of a step, on all GPUs.
    images_per_pass: maximum number of images that a GPU processes at once; None for all of its share.
    Raises ConfigError if the images of a step cannot be divided evenly among the GPUs.
    """
    images = hardware.images_per_gpu(images_per_step)
    roofline = images * sum(operations.seconds(hardware.device) * repeats for operations, repeats in step.operations())
    # A ring all-reduce sends every gradient twice, less the GPU's own part; FSDP2 also gathers the encoder's weights twice.
    communication = 2 * FP32_BYTES * step.num_trained * (hardware.num_gpus - 1) / hardware.num_gpus
    if hardware.shard_encoder:
        communication += FP32_BYTES * step.parameters["image_encoder"] * (hardware.num_gpus - 1) / hardware.num_gpus
    communication_s = communication / hardware.interconnect_gb_per_s / 1e9
    step_s = roofline / hardware.efficiency + communication_s
    return CostEstimate(
        memory_gb=memory_gb(step, hardware, images=min(images, images_per_pass or images)),
        step_tflop=step.flops() * images_per_step / 1e12,
        roofline_s=roofline,
        step_s=step_s,
        communication_gb=communication / 1e9,
        communication_s=communication_s,
        images_per_s=images_per_step / step_s,
        days=max_steps * step_s / 86400,
        gpu_hours=max_steps * step_s / 3600 * hardware.num_gpus,
    )


def memory_gb(step: StepCost, hardware: HardwareSpec, *, images: int) -> dict[str, float]:
    """Return the peak memory of one GPU by part, in gigabytes, for passes of `images` images.

    The workspace of a running kernel is not counted.
    """
    encoder = step.parameters["image_encoder"]
    total = sum(step.parameters.values())
    weight_fraction = (total - encoder + encoder / hardware.num_gpus) / total if hardware.shard_encoder else 1.0
    optimizer_fraction = 1 / hardware.num_gpus if hardware.shard_optimizer else weight_fraction
    largest_round = max(step.first_round.saved_activation_bytes, step.later_round.saved_activation_bytes)
    parts: dict[str, Any] = {
        "weights": FP32_BYTES * total * weight_fraction,
        "gradients": FP32_BYTES * step.num_trained * weight_fraction,
        "optimizer": ADAMW_STATE_BYTES * step.num_trained * optimizer_fraction,
        "encoder activations": images * step.encoder.saved_activation_bytes if step.encoder else 0.0,
        "largest round": images * largest_round,
    }
    return {name: value / 1e9 for name, value in parts.items()} | {"context": CONTEXT_GB}
