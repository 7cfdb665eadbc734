"""Gradients of several processes: summed once a step, after all of its backward passes.

DistributedDataParallel sums inside the backward pass, which a step has a dozen of. Here each process adds up its rounds
first; then flat buckets are summed, one on its way while the next is filled.
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

    A gradient that only some processes have counts as zero in the others; one that nobody has stays None, so that weight
    decay reaches what it would reach in one process. Sharded parameters (DTensor) are left: their backward pass sums.
    """
    if rank_and_world_size()[1] == 1:
        return
    plain = [p for p in parameters if not isinstance(p, DTensor)]
    if not plain:
        return
    there = torch.tensor([p.grad is not None for p in plain], dtype=torch.int32, device=plain[0].device)
    distributed.all_reduce(there)
    under_way = []
    for bucket in _buckets([p for p, anybody in zip(plain, there.tolist(), strict=True) if anybody], bucket_bytes):
        flat = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in bucket])
        under_way.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, work in under_way:
        work.wait()
        for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = piece.view(parameter.shape)


@torch.no_grad()
def divide_gradients(parameters: Iterable[nn.Parameter], divisor: Float[Tensor, ""]) -> None:
    """Divide each gradient by a number that may still be on its way to the device."""
    for gradients in _kinds(parameters):
        torch._foreach_div_(gradients, divisor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Float[Tensor, ""]:
    """The norm of all gradients together, sharded or not; longer ones are shortened to `max_norm`."""
    parameters = list(parameters)
    norms = [get_total_norm(gradients) for gradients in _kinds(parameters)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = whole[0] if len(whole) == 1 else torch.stack(whole).norm()
    if max_norm is not None and math.isfinite(max_norm):
        for kind in (True, False):
            clip_grads_with_norm_([p for p in parameters if isinstance(p, DTensor) is kind], max_norm, norm)
    return norm


def _kinds(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """Gradients, sharded and plain ones apart: one operation over a list takes one kind. Empty lists are left out."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (False, True)]
    return [kind for kind in kinds if kind]


def _buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one dtype, together of about `bucket_bytes`."""
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
