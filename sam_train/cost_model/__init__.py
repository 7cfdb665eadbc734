"""Cost of a training run, before it is started: one step is counted on fake tensors and timed by a device's roofline."""

from sam_train.cost_model.cost_estimate import CostEstimate, HardwareSpec, estimate_cost
from sam_train.cost_model.devices import get_device
from sam_train.cost_model.step_cost import StepCost, count_step

__all__ = ["CostEstimate", "HardwareSpec", "StepCost", "count_step", "estimate_cost", "get_device"]
