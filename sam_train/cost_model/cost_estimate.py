"""From a counted step to memory, time and communication on so many devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam_train.cost_model.op_counter import Device
from sam_train.cost_model.step_cost import StepCost
from sam_train.errors import ConfigError

FP32 = 4
ADAMW_STATE = 2 * FP32
# CUDA's context and its libraries' workspaces.
CONTEXT_GB = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """Of a run. Gigabytes are 1e9 bytes; seconds are of one step at the efficiency that was assumed."""

    memory_gb: dict[str, float]
    """Of one device, by part, at the moment of most."""
    step_tflop: float
    """Of all devices."""
    roofline_s: float
    """Of a device's images, at the limits of its data sheet."""
    step_s: float
    communication_gb: float
    """Of a device, a step."""
    communication_s: float
    images_per_s: float
    days: float
    gpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSpec:
    """The devices and what is assumed of them; see configs/plan.yaml."""

    device: Device
    num_gpus: int
    shard_optimizer: bool
    shard_encoder: bool
    efficiency: float
    interconnect_gb_per_s: float

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or not 0 < self.efficiency <= 1 or self.interconnect_gb_per_s <= 0:
            raise ConfigError(
                f"plan.num_gpus {self.num_gpus} must be at least 1, plan.efficiency {self.efficiency} in (0, 1], and "
                f"plan.interconnect_gb_per_s {self.interconnect_gb_per_s} above 0"
            )

    def images_per_gpu(self, images_per_step: int) -> int:
        """Raises ConfigError when the images of a step cannot be dealt out evenly."""
        if images_per_step % self.num_gpus:
            raise ConfigError(f"data.images_per_step={images_per_step} cannot be dealt out to plan.num_gpus={self.num_gpus}")
        return images_per_step // self.num_gpus


def estimate_cost(
    step: StepCost, plan: HardwareSpec, *, images_per_step: int, images_per_pass: int | None, max_steps: int
) -> CostEstimate:
    """images_per_step: of all devices; images_per_pass: that a device takes at once, None for its whole share."""
    images = plan.images_per_gpu(images_per_step)
    roofline = images * sum(work.seconds(plan.device) * times for work, times in step.works())
    # A ring passes every gradient around twice, less its own share; sharing the encoder gathers its weights twice as well.
    communication = 2 * FP32 * step.trained * (plan.num_gpus - 1) / plan.num_gpus
    if plan.shard_encoder:
        communication += FP32 * step.parameters["image_encoder"] * (plan.num_gpus - 1) / plan.num_gpus
    communication_s = communication / plan.interconnect_gb_per_s / 1e9
    step_s = roofline / plan.efficiency + communication_s
    return CostEstimate(
        memory_gb=memory_gb(step, plan, images=min(images, images_per_pass or images)),
        step_tflop=step.flops() * images_per_step / 1e12,
        roofline_s=roofline,
        step_s=step_s,
        communication_gb=communication / 1e9,
        communication_s=communication_s,
        images_per_s=images_per_step / step_s,
        days=max_steps * step_s / 86400,
        gpu_hours=max_steps * step_s / 3600 * plan.num_gpus,
    )


def memory_gb(step: StepCost, plan: HardwareSpec, *, images: int) -> dict[str, float]:
    """By part. What a kernel needs while it runs is not counted."""
    encoder = step.parameters["image_encoder"]
    everything = sum(step.parameters.values())
    own_share = (everything - encoder + encoder / plan.num_gpus) / everything if plan.shard_encoder else 1.0
    optimizer_share = 1 / plan.num_gpus if plan.shard_optimizer else own_share
    largest_round = max(step.first_round.saved_activation_bytes, step.later_round.saved_activation_bytes)
    parts: dict[str, Any] = {
        "weights": FP32 * everything * own_share,
        "gradients": FP32 * step.trained * own_share,
        "optimizer": ADAMW_STATE * step.trained * optimizer_share,
        "encoder activations": images * step.encoder.saved_activation_bytes if step.encoder else 0.0,
        "largest round": images * largest_round,
    }
    return {name: value / 1e9 for name, value in parts.items()} | {"context": CONTEXT_GB}
