"""A small writer of ONNX graphs: an operation a call, a constant wherever an operand is no name.

The decoder's graph is written by hand, not traced: which of two equal forms is quick depends on the runtime's kernels, and
a tracer does not ask. Opset 17, as released; later GELU and attention operations are left to the runtime's own fusions.
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

OPSET, IR_VERSION = 17, 8
HALF_FROM = 1024  # elements from which a constant is worth storing in half precision

Value = str | Tensor | np.ndarray | np.float32


@dataclass(frozen=True)
class Weights:
    """The tensors of a state dict whose names begin with `prefix`."""

    state: Mapping[str, Tensor]
    prefix: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name].detach().float().cpu()

    def part(self, name: str) -> Weights:
        """Those of a submodule."""
        return Weights(self.state, f"{self.prefix}{name}.")


@dataclass
class Graph:
    """Nodes in order and the constants they read. A branch or a loop's body is a `child`: names and constants are shared."""

    half: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=count)
    root: Graph | None = None

    def child(self) -> Graph:
        """A graph inside this one: it sees the names of this one, and its constants are kept with this one's."""
        return Graph(self.half, constants=self.constants, names=self.names, root=self.root or self)

    def constant(self, value: Tensor | np.ndarray | np.float32) -> str:
        """The name of a constant. With `half`, large float ones are stored in half precision and cast back."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name, halved = f"constant_{next(self.names)}", self.half and array.dtype == np.float32 and array.size >= HALF_FROM
        self.constants.append(numpy_helper.from_array(array.astype(np.float16) if halved else array, name))
        return (self.root or self).op("Cast", name, to=TensorProto.FLOAT) if halved else name

    def op(self, kind: str, *operands: Value, name: str = "", **attributes: Any) -> str:
        """Append a node with one output; the output's name."""
        return self.ops(kind, *operands, names=[name or f"{kind}_{next(self.names)}"], **attributes)[0]

    def ops(self, kind: str, *operands: Value, names: list[str], **attributes: Any) -> list[str]:
        """Append a node with several outputs."""
        inputs = [operand if isinstance(operand, str) else self.constant(operand) for operand in operands]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def fresh(self, what: str) -> str:
        """A name that nothing has yet."""
        return f"{what}_{next(self.names)}"

    def reshape(self, x: str, *shape: int | str) -> str:
        """To a shape of numbers and of names of one-element tensors."""
        return self.op("Reshape", x, self.shape(*shape))

    def shape(self, *sizes: int | str) -> str:
        """A shape of numbers and of names of one-element tensors."""
        if not any(isinstance(size, str) for size in sizes):
            return self.constant(integers(*sizes))
        return self.op("Concat", *[size if isinstance(size, str) else integers(size) for size in sizes], axis=0)

    def transpose(self, x: str, *order: int) -> str:
        """The axes in another order."""
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: str, start: int, end: int | str, *, axis: int) -> str:
        """`x[start:end]` along an axis."""
        return self.op("Slice", x, integers(start), end if isinstance(end, str) else integers(end), integers(axis))

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """A linear layer on rows."""
        return self.op("Gemm", x, weight, bias, transB=1)

    def layer_norm(self, x: str, weights: Weights, eps: float) -> str:
        """Over the last axis."""
        return self.op("LayerNormalization", x, weights["weight"], weights["bias"], axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        """The exact one, in the form that runtimes know and fuse."""
        erf = self.op("Erf", self.op("Div", x, np.float32(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, np.float32(1))), np.float32(0.5))

    def body(self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """A child as the attribute of an operation; constants stay outside."""
        return helper.make_graph(self.nodes, name, inputs, outputs)

    def model(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """The whole, checked."""
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model


def integers(*values: int | str) -> np.ndarray:
    """A vector of int64."""
    return np.array(values, np.int64)


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """What is known of an input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def stacked(weights: list[Weights], name: str) -> Tensor:
    """The same tensor of several submodules, along a new first axis."""
    return torch.stack([part[name] for part in weights])
