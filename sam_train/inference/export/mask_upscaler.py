"""Upscaling of image tokens to low-resolution masks, in ONNX: two transposed convolutions and the product with maps.

A transposed convolution whose stride equals its kernel is one linear map per cell, to its four children. In this form channels
stay last and nothing is unfolded. As in model/mask_decoder.py; L image tokens of C channels on a square grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam_train.inference.export.graph import Graph, Weights, info

MAP_NORM_EPS = 1e-6
# The image is upscaled in strips, one after another, so that the activations between the layers stay in the cache.
NUM_STRIPS = 4


@dataclass(frozen=True)
class MaskUpscaler:
    """Writes `output_upscaling` into `graph`. grid: tokens along a side; channels: C."""

    graph: Graph
    weights: Weights
    grid: int
    channels: int

    def write(self, image: str, details: Sequence[str], maps: str, num_masks: int) -> str:
        """Return the name of the masks, 1 x M x 4h x 4w: the image tokens (L x C) upscaled four times, times the maps (M x D).

        details: empty, or the names of what is added to the tokens' children (L x C) and grandchildren (L x 2C).
        """
        g, strips = self.graph, math.gcd(NUM_STRIPS, self.grid)
        body, tokens = g.child(), self.grid**2 // strips
        streams = dict(zip([image, *details], (self.channels, self.channels, 2 * self.channels), strict=False))
        inside = {g.unique_name("strip"): width for width in streams.values()}
        out = self._strip(body, [*inside], g.transpose(maps, 1, 0) if num_masks == 1 else maps, num_masks)
        shape = (16 * tokens, 1) if num_masks == 1 else (num_masks, 16 * tokens)
        body_graph = body.body("upscale", [info(x, tokens, width) for x, width in inside.items()], [info(out, *shape)])
        scanned = [g.reshape(x, strips, tokens, width) for x, width in streams.items()]
        axis = 0 if num_masks == 1 else 1
        products = g.op("Scan", *scanned, body=body_graph, num_scan_inputs=len(scanned), scan_output_axes=[axis])
        # M is the first axis for several masks, before strips and tokens, and the last for one.
        products = g.reshape(products, num_masks, 2 * self.grid, 2 * self.grid, 2, 2)
        return g.reshape(g.transpose(products, 0, 1, 3, 2, 4), 1, num_masks, 4 * self.grid, 4 * self.grid)

    def _strip(self, g: Graph, streams: list[str], maps: str, num_masks: int) -> str:
        """Return the products of the pixels, ordered by row and column at twice the size, then by row and column within.

        The result is one column for one mask, which is a matrix-vector product, and M rows for several.
        """
        w, (tokens, *details) = self.weights, streams
        x, width = self._children(g, tokens, w.part("0"))
        x = self._at_twice(g, g.op("Add", x, details[0]) if details else x, width)
        x = g.gelu(g.layer_norm(x, w.part("1"), MAP_NORM_EPS))
        x, width = self._children(g, x, w.part("3"))
        x = g.op("Add", x, self._at_twice(g, details[1], 4 * width)) if details else x
        x = g.reshape(g.gelu(x), -1, width)
        return g.op("MatMul", x, maps) if num_masks == 1 else g.op("Gemm", maps, x, transB=1)

    def _children(self, g: Graph, x: str, conv: Weights) -> tuple[str, int]:
        """Return the four children of each row (y x o), and the number of output channels o."""
        weight = conv["weight"].permute(0, 2, 3, 1)  # i 2 2 o
        return g.op("Gemm", x, weight.flatten(1), conv["bias"].repeat(4)), weight.shape[-1]

    def _at_twice(self, g: Graph, x: str, width: int) -> str:
        """Reorder image tokens with their children (y x width) to rows of `width` in image order at twice the size."""
        return g.reshape(g.transpose(g.reshape(x, -1, self.grid, 2, 2 * width), 0, 2, 1, 3), -1, width)
