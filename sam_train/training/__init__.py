"""The training step, how several processes share it, and what watches it."""

from sam_train.training.sam_module import SamModule

__all__ = ["SamModule"]
