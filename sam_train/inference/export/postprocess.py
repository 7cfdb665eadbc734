"""Masks at the size of the image, in ONNX: bilinear to the model frame, crop of the padding, bilinear to the image.

The same as geometry.Resize.logits_to_image (Sam.postprocess_masks), one axis at a time: bilinear interpolation is separable,
and a runtime parallelises a resize over channels, of which a single mask has one. Here the rows of a mask are the channels
while columns are resized, and vice versa.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from sam_train.inference.export.graph import Graph, integers


def postprocess_masks(g: Graph, low: str, *, num_masks: int, side: int, size: int) -> str:
    """Return the name of logits 1 x M x H x W for orig_im_size = (H, W), computed from 1 x M x side x side.

    size: side of the model frame.
    """
    (scaled_h, scaled_w), (height, width) = _sizes(g, size)
    rows = num_masks * side
    x = _resize(g, g.reshape(low, 1, rows, 1, side), 1, rows, 1, size)
    x = _resize(g, g.slice(x, 0, scaled_w, axis=3), 1, rows, 1, width)
    x = _resize(g, g.reshape(x, num_masks, side, 1, -1), num_masks, size, 1, width)
    x = _resize(g, g.slice(x, 0, scaled_h, axis=1), num_masks, height, 1, width)
    return g.reshape(x, 1, num_masks, height, width)


def _sizes(g: Graph, size: int) -> tuple[list[str], list[str]]:
    """Return height and width inside the model frame and of the image, in double precision as geometry.Resize rounds them."""
    image = g.op("Cast", "orig_im_size", to=TensorProto.DOUBLE)
    scale = g.op("Div", np.array([size], np.float64), g.op("ReduceMax", image, keepdims=1))
    half = np.array([0.5], np.float64)
    scaled = g.op("Cast", g.op("Floor", g.op("Add", g.op("Mul", image, scale), half)), to=TensorProto.INT64)
    scaled = g.op("Max", scaled, integers(1))
    parts = [
        g.ops("Split", x, names=[g.unique_name("rows"), g.unique_name("columns")], axis=0, num_outputs=2)
        for x in (scaled, g.op("Cast", image, to=TensorProto.INT64))
    ]
    return parts[0], parts[1]


def _resize(g: Graph, x: str, *shape: int | str) -> str:
    mode = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    return g.op("Resize", x, "", "", g.shape(*shape), **mode)
