"""How much of a computation that is done in pieces is done at once: what a CPU's caches hold, or enough to keep a GPU busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSizes:
    """Numbers of values."""

    bias: int
    """Of the bias that relative positions give an attention."""
    stream: int
    """Of the decoder's image stream, over the prompts that are decoded together."""
    upscaled: int
    """Of the part of it that is upscaled together."""
    loss: int
    """Of the logits whose losses are computed together."""


# The bias: 16 MB, which stay in the cache and still are 1024 queries of a 64 x 64 map, from where on torch's kernel takes its
# large blocks.
CPU = ChunkSizes(bias=1 << 22, stream=1 << 22, upscaled=1 << 18, loss=1 << 17)
# 64 prompts on a grid of 64 x 64 in one piece: in pieces, a GPU would only start kernels. Not measured on one.
ACCELERATOR = ChunkSizes(bias=1 << 26, stream=1 << 26, upscaled=1 << 26, loss=1 << 26)

_pretended: list[ChunkSizes] = []


def chunk_sizes_for(device: torch.device) -> ChunkSizes:
    """What is right for a device."""
    if _pretended:
        return _pretended[-1]
    return CPU if device.type == "cpu" else ACCELERATOR


@contextmanager
def override_chunk_sizes(numbers: ChunkSizes) -> Iterator[None]:
    """Within it, what is right for another device than the tensors are on."""
    _pretended.append(numbers)
    try:
        yield
    finally:
        _pretended.pop()
