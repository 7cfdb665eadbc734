"""Sizes of the chunks in which large computations are done: what a CPU's caches hold, or enough to keep a GPU busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSizes:
    """Numbers of values."""

    attention_bias: int
    """Of the bias that relative positions give an attention."""
    image_tokens: int
    """Of the decoder's image stream, over the prompts that are decoded together."""
    upscaling: int
    """Of the part of it that is upscaled together."""
    mask_loss: int
    """Of the logits whose losses are computed together."""


# The bias: 16 MB, which stay in the cache and still are 1024 queries of a 64 x 64 map, from where on torch's kernel takes its
# large blocks.
CPU_CHUNK_SIZES = ChunkSizes(attention_bias=1 << 22, image_tokens=1 << 22, upscaling=1 << 18, mask_loss=1 << 17)
# 64 prompts on a grid of 64 x 64 in one piece: in pieces, a GPU would only start kernels. Not measured on one.
ACCELERATOR_CHUNK_SIZES = ChunkSizes(attention_bias=1 << 26, image_tokens=1 << 26, upscaling=1 << 26, mask_loss=1 << 26)

_pretended: list[ChunkSizes] = []


def chunk_sizes_for(device: torch.device) -> ChunkSizes:
    """What is right for a device."""
    if _pretended:
        return _pretended[-1]
    return CPU_CHUNK_SIZES if device.type == "cpu" else ACCELERATOR_CHUNK_SIZES


@contextmanager
def override_chunk_sizes(numbers: ChunkSizes) -> Iterator[None]:
    """Within it, what is right for another device than the tensors are on."""
    _pretended.append(numbers)
    try:
        yield
    finally:
        _pretended.pop()
