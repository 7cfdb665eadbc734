"""Weights by name: wherever a checkpoint is given, a registered name stands for its file.

    load_predictor("starter")
    sam-train init_checkpoint=starter ...

This package does not import torch, so that a command can check its arguments before anything heavy is imported.
"""

from sam_train.weights.names import NAMED_WEIGHTS, is_weights_name, resolve_checkpoint

__all__ = ["NAMED_WEIGHTS", "is_weights_name", "resolve_checkpoint"]
