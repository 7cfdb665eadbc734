"""GPUs by name, with the limits of their makers' data sheets."""

from __future__ import annotations

from sam_train.cost_model.op_counter import Device
from sam_train.errors import ConfigError

LAUNCH_S = 6e-6
"""Seconds to launch a kernel from Python; torch.compile or CUDA graphs would lower it."""

DEVICES = {
    name: Device(name=name, memory_gb=memory, tflops=bf16, tflops_fp32=fp32, gb_per_s=bandwidth, launch_s=LAUNCH_S)
    for name, (memory, bf16, fp32, bandwidth) in {
        "a100-40gb": (40, 312, 19.5, 1555),
        "a100-80gb": (80, 312, 19.5, 2039),
        "h100-80gb": (80, 989, 67, 3350),
        "h200-141gb": (141, 989, 67, 4800),
        "l40s-48gb": (48, 362, 91.6, 864),
        "a10-24gb": (24, 125, 31.2, 600),
        "rtx4090-24gb": (24, 165, 82.6, 1008),
        "rtx3090-24gb": (24, 71, 35.6, 936),
    }.items()
}


def get_device(name: str) -> Device:
    """Return a device by name. Raises ConfigError, with the known names, if there is none."""
    if name not in DEVICES:
        raise ConfigError(f"unknown plan.gpu={name}: expected one of {', '.join(DEVICES)}")
    return DEVICES[name]
