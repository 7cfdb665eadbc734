"""AdamW with layer-wise learning rate decay, warm-up and milestones; Muon for matrices."""

from sam_train.optim.adamw import OptimizerFactory

__all__ = ["OptimizerFactory"]
