"""Weights by name and checkpoints by path: the files that a checkpoint argument refers to.

    load_predictor("starter")
    sam-train init_checkpoint=starter ...

This package does not import torch, so that a command can check its arguments before anything heavy is imported.
"""

from sam_train.weights.location import ACCEPTED_CHECKPOINTS, checkpoint_files
from sam_train.weights.names import NAMED_WEIGHTS, is_weights_name, resolve_checkpoint

__all__ = ["ACCEPTED_CHECKPOINTS", "NAMED_WEIGHTS", "checkpoint_files", "is_weights_name", "resolve_checkpoint"]
