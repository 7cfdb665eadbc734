"""Gradient reduction and clipping, once per step after all of its backward passes.

DistributedDataParallel reduces gradients inside the backward pass, of which a step has a dozen. Here each process first
accumulates the gradients of all rounds; then they are all-reduced in flat buckets, each while the next one is filled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sam_train.training.step_metrics import rank_and_world_size

BUCKET_BYTES = 64 << 20


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], *, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each gradient by its sum over all processes.

    A gradient that exists in some processes only counts as zero in the others. One that exists in no process stays None, so that
    weight decay applies to the same parameters as in a single process. The gradients of sharded parameters (DTensor) are skipped:
    their backward pass has already summed them.
    """
    if rank_and_world_size()[1] == 1:
        return
    plain = [p for p in parameters if not isinstance(p, DTensor)]
    if not plain:
        return
    num_present = torch.tensor([p.grad is not None for p in plain], dtype=torch.int32, device=plain[0].device)
    distributed.all_reduce(num_present)
    pending = []
    for bucket in _buckets([p for p, num in zip(plain, num_present.tolist(), strict=True) if num], bucket_bytes):
        flat = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in bucket])
        pending.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, handle in pending:
        handle.wait()
        for parameter, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = gradient.view(parameter.shape)


@torch.no_grad()
def divide_gradients(parameters: Iterable[nn.Parameter], divisor: Float[Tensor, ""]) -> None:
    """Divide each gradient by a scalar on the device, without a synchronisation."""
    for gradients in _gradients_by_kind(parameters):
        torch._foreach_div_(gradients, divisor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Float[Tensor, ""]:
    """Scale all gradients, sharded or not, to a common norm of at most `max_norm`. Return the norm before clipping."""
    parameters = list(parameters)
    norms = [get_total_norm(gradients) for gradients in _gradients_by_kind(parameters)]
    full_norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = full_norms[0] if len(full_norms) == 1 else torch.stack(full_norms).norm()
    if max_norm is not None and math.isfinite(max_norm):
        for is_sharded in (True, False):
            clip_grads_with_norm_([p for p in parameters if isinstance(p, DTensor) is is_sharded], max_norm, norm)
    return norm


def _gradients_by_kind(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """Return the plain and the sharded gradients as separate lists, without empty ones: a foreach operation takes one kind."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is is_sharded] for is_sharded in (False, True)]
    return [kind for kind in kinds if kind]


def _buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Group consecutive parameters of one dtype into buckets of about `bucket_bytes`."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size >= bucket_bytes or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
