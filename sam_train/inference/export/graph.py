"""A small writer of ONNX graphs: each call appends one operation, and operands that are not names become constants.

The decoder's graph is written by hand, not traced: which of two equivalent forms is faster depends on the runtime's kernels,
which a tracer does not consider. GELU and attention are left to the runtime's own fusions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET, IR_VERSION = 18, 10
"""Versions of operators and file format, also of encoder.onnx: the lowest that torch's exporter writes without conversion."""
HALF_MIN_SIZE = 1024  # constants with fewer elements stay in single precision

Value = str | Tensor | np.ndarray | np.float32


@dataclass(frozen=True)
class Weights:
    """The tensors of a state dict whose names begin with `prefix`."""

    state: Mapping[str, Tensor]
    prefix: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name].detach().float().cpu()

    def part(self, name: str) -> Weights:
        """Return the tensors of a submodule."""
        return Weights(self.state, f"{self.prefix}{name}.")


@dataclass
class Graph:
    """Nodes in order and the constants that they read. The body of a branch or a loop is a `child` graph."""

    half: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=count)
    root: Graph | None = None

    def child(self) -> Graph:
        """Return a graph inside this one: it can read this graph's values, and shares its names and constants."""
        return Graph(self.half, constants=self.constants, names=self.names, root=self.root or self)

    def constant(self, value: Tensor | np.ndarray | np.float32) -> str:
        """Add a constant and return its name. With `half`, large float constants are stored in half precision and cast back."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name, halved = f"constant_{next(self.names)}", self.half and array.dtype == np.float32 and array.size >= HALF_MIN_SIZE
        self.constants.append(numpy_helper.from_array(array.astype(np.float16) if halved else array, name))
        return (self.root or self).op("Cast", name, to=TensorProto.FLOAT) if halved else name

    def op(self, kind: str, *operands: Value, name: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.ops(kind, *operands, names=[name or f"{kind}_{next(self.names)}"], **attributes)[0]

    def ops(self, kind: str, *operands: Value, names: list[str], **attributes: Any) -> list[str]:
        """Append a node with several outputs and return their names."""
        inputs = [operand if isinstance(operand, str) else self.constant(operand) for operand in operands]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def unique_name(self, prefix: str) -> str:
        """Return an unused name that begins with `prefix`."""
        return f"{prefix}_{next(self.names)}"

    def reshape(self, x: str, *shape: int | str) -> str:
        """Reshape `x` to a shape of numbers and of names of one-element tensors."""
        return self.op("Reshape", x, self.shape(*shape))

    def shape(self, *sizes: int | str) -> str:
        """Return the name of a shape that consists of numbers and of names of one-element tensors."""
        if not any(isinstance(size, str) for size in sizes):
            return self.constant(integers(*sizes))
        return self.op("Concat", *[size if isinstance(size, str) else integers(size) for size in sizes], axis=0)

    def transpose(self, x: str, *order: int) -> str:
        """Permute the axes."""
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: str, start: int, end: int | str, *, axis: int) -> str:
        """Return `x[start:end]` along an axis."""
        return self.op("Slice", x, integers(start), end if isinstance(end, str) else integers(end), integers(axis))

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """Append a linear layer on the rows of `x`."""
        return self.op("Gemm", x, weight, bias, transB=1)

    def layer_norm(self, x: str, weights: Weights, eps: float) -> str:
        """Append a layer norm over the last axis."""
        return self.op("LayerNormalization", x, weights["weight"], weights["bias"], axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        """Append the exact GELU in the form that runtimes recognise and fuse."""
        erf = self.op("Erf", self.op("Div", x, np.float32(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, np.float32(1))), np.float32(0.5))

    def body(self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """Return a child graph as the attribute of an operation; its constants stay in the root graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs)

    def model(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Return the complete model. Raises onnx.checker.ValidationError if it is invalid."""
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model


def integers(*values: int | str) -> np.ndarray:
    """Return a vector of int64."""
    return np.array(values, np.int64)


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Return name, shape and element type of an input or output; names in the shape are dynamic sizes."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def stacked(weights: list[Weights], name: str) -> Tensor:
    """Stack the same tensor of several submodules along a new first axis."""
    return torch.stack([part[name] for part in weights])
