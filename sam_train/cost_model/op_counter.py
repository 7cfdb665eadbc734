"""Operations, memory traffic and kept activations of a computation on fake tensors: nothing is computed, every size is real."""

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
    """What a device can do at most, from its maker's data sheet; `launch_s` is what starting one kernel costs."""

    name: str
    memory_gb: float
    tflops: float
    """Dense products of matrices in bf16, 1e12 operations a second."""
    tflops_fp32: float
    gb_per_s: float
    """Memory bandwidth."""
    launch_s: float


@dataclass(slots=True)
class OperationLog:
    """What was done: one entry an operation."""

    flops: list[float] = field(default_factory=list)
    """Multiplications and additions in products of matrices, each counted."""
    is_half: list[bool] = field(default_factory=list)
    """Whether the result is in half precision."""
    bytes: list[float] = field(default_factory=list)
    """Read and written by the operation, as eager kernels do: nothing stays in a cache between two."""

    def seconds(self, device: Device) -> float:
        """By the roofline: each kernel is as slow as the slowest of its arithmetic, its memory traffic and its launch."""
        entries = zip(self.flops, self.is_half, self.bytes, strict=True)
        rate = {True: device.tflops * 1e12, False: device.tflops_fp32 * 1e12}
        return sum(max(f / rate[half], b / device.gb_per_s / 1e9, device.launch_s) for f, half, b in entries)


class FusedAttention(TorchFunctionMode):
    """Within it, attention is one kernel that keeps no scores, as on real devices; for fake tensors torch takes it apart.

    It stays apart where the bias is learned (relative positions): the kernel that torch has a fake of has no gradient for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bias = kwargs.get("attn_mask")
        if func is not F.scaled_dot_product_attention or (bias is not None and bias.requires_grad):
            return func(*args, **kwargs)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    return 2.0 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# The backward pass makes the scores again and has four products of the same sizes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda args: _attention_flops(*args[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda args: 2.5 * _attention_flops(*args[1:4]),
}


class OperationCounter(TorchDispatchMode):
    """Within it, every operation is added to `work`; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.work = OperationLog()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if tensors and not is_view and not func.namespace.startswith("prim"):
            self.work.flops.append(_flops(func._overloadpacket, args, kwargs or {}, out))
            self.work.is_half.append(isinstance(out, Tensor) and out.element_size() == 2)
            self.work.bytes.append(float(sum(t.numel() * t.element_size() for t in tensors)))
        return out


def _flops(operation: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    if operation in _ATTENTION:
        return _ATTENTION[operation](args)
    count = flop_registry.get(operation)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0


@contextmanager
def saved_activation_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Within it, what autograd keeps for the backward pass is added up in the list's one number; weights are not counted."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = tensor  # held, or a storage that follows could have its address
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def to_fake_tensors(model: nn.Module) -> nn.Module:
    """A model built on the meta device, with fake CPU tensors in place of its own; to be called within a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                kept = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model
