"""Optimizers: AdamW with layer-wise learning rate decay and schedules, and Muon for weight matrices."""

from sam_train.optim.adamw import OptimizerFactory

__all__ = ["OptimizerFactory"]
