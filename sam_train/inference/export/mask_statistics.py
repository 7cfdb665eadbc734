"""The head of `model/mask_statistics.py` as ONNX operations."""

from __future__ import annotations

import numpy as np

from sam_train.inference.export.graph import Graph, Weights, integers
from sam_train.model.mask_statistics import LOGIT_SCALE, NUM_STATISTICS


def mask_statistics_head(g: Graph, head: Weights, masks: str, *, num_masks: int, side: int) -> str:
    """Append the value that is added to the IoU score of each mask, 1 x M. masks: logits, 1 x M x side x side."""
    one, scale = np.float32(1), np.float32(LOGIT_SCALE)

    def total(values: str) -> str:
        return g.op("ReduceSum", values, integers(2, 3), keepdims=0)

    probabilities = g.op("Sigmoid", masks)
    area = g.op("Add", total(probabilities), one)
    statistics = [
        g.op("Div", total(g.op("Mul", probabilities, probabilities)), area),
        g.op("Div", g.op("Div", total(g.op("Mul", masks, probabilities)), area), scale),
        g.op("Div", g.op("Log", g.op("Div", area, np.float32(side**2))), scale),
    ]
    assert len(statistics) == NUM_STATISTICS
    rows = g.transpose(g.op("Concat", *statistics, axis=0), 1, 0)  # M x 3
    hidden = g.op("Relu", g.linear(rows, head["mlp.layers.0.weight"], head["mlp.layers.0.bias"]))
    return g.reshape(g.linear(hidden, head["mlp.layers.1.weight"], head["mlp.layers.1.bias"]), 1, num_masks)
