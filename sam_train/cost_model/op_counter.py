"""Counts the operations, memory traffic and saved activations of a computation on fake tensors, without computing anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Limits of a device, from its data sheet."""

    name: str
    memory_gb: float
    tflops: float
    """Throughput of dense bf16 matrix products with fp32 accumulation, 1e12 operations per second."""
    tflops_fp32: float
    """Throughput of fp32 matrix products, 1e12 operations per second."""
    gb_per_s: float
    """Memory bandwidth, 1e9 bytes per second."""
    launch_s: float
    """Seconds to launch one kernel."""


@dataclass(slots=True)
class OperationLog:
    """The operations of a computation: one entry per operation in each list."""

    flops: list[float] = field(default_factory=list)
    """Multiplications plus additions of matrix products; 0 for other operations."""
    is_half: list[bool] = field(default_factory=list)
    """True if the result is in half precision."""
    bytes: list[float] = field(default_factory=list)
    """Bytes that the operation reads and writes, as in eager mode: nothing stays in a cache between two operations."""

    def seconds(self, device: Device) -> float:
        """Return the roofline time: each kernel takes the longest of its arithmetic, its memory traffic and its launch."""
        entries = zip(self.flops, self.is_half, self.bytes, strict=True)
        rate = {True: device.tflops * 1e12, False: device.tflops_fp32 * 1e12}
        return sum(max(f / rate[half], b / device.gb_per_s / 1e9, device.launch_s) for f, half, b in entries)


class FusedAttention(TorchFunctionMode):
    """Context in which attention is one fused kernel that saves no scores, as on GPUs; torch decomposes it for fake tensors.

    Attention with a trained bias (relative positions) stays decomposed: the kernel that torch can fake has no gradient for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bias = kwargs.get("attn_mask")
        if func is not F.scaled_dot_product_attention or (bias is not None and bias.requires_grad):
            return func(*args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    return 2.0 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# The backward pass recomputes the scores and has four products of the same sizes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda args: _attention_flops(*args[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda args: 2.5 * _attention_flops(*args[1:4]),
}


class OperationCounter(TorchDispatchMode):
    """Context in which every operation except views is added to `operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = OperationLog()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if tensors and not is_view and not func.namespace.startswith("prim"):
            self.operations.flops.append(_flops(func._overloadpacket, args, kwargs or {}, out))
            self.operations.is_half.append(isinstance(out, Tensor) and out.element_size() == 2)
            self.operations.bytes.append(float(sum(t.numel() * t.element_size() for t in tensors)))
        return out


def _flops(operation: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    if operation in _ATTENTION:
        return _ATTENTION[operation](args)
    count = flop_registry.get(operation)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0


@contextmanager
def count_saved_activations(model: nn.Module) -> Iterator[list[int]]:
    """Context manager that counts the bytes of the tensors that autograd saves for the backward pass, without weights.

    It yields a list whose only entry is the number of bytes.
    """
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in saved:
            saved[storage._cdata] = tensor  # the reference keeps a later storage from reusing its address
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def to_fake_tensors(model: nn.Module) -> nn.Module:
    """Replace the meta tensors of a model by fake CPU tensors, and return the model. Call it within a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model
