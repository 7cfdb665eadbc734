"""The training step, its distribution over processes, checkpoints, and the callbacks of a run."""

from sam_train.training.sam_module import SamModule

__all__ = ["SamModule"]
