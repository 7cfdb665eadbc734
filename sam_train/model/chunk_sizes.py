"""Sizes of the chunks in which large computations are done: what a CPU's caches hold, or enough to keep a GPU busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSizes:
    """Number of tensor elements that one chunk of each computation holds."""

    attention_bias: int
    """Elements of the bias that relative positions add to attention scores."""
    image_tokens: int
    """Elements of the decoder's image tokens, over the prompts that are decoded together."""
    upscaling: int
    """Elements of the image tokens that the decoder upscales together."""
    mask_loss: int
    """Logits whose losses are computed together."""


CPU_CHUNK_SIZES = ChunkSizes(attention_bias=1 << 22, image_tokens=1 << 22, upscaling=1 << 18, mask_loss=1 << 17)
"""Chunk sizes on a CPU. The bias of 16 MB fits the cache and still has 1024 queries of a 64 x 64 map, from which on torch's
kernel uses its large blocks."""
ACCELERATOR_CHUNK_SIZES = ChunkSizes(attention_bias=1 << 26, image_tokens=1 << 26, upscaling=1 << 26, mask_loss=1 << 26)
"""Chunk sizes on a GPU: 64 prompts on a 64 x 64 grid in one chunk, because smaller chunks only add kernel launches. Not
measured on a GPU."""

_overrides: list[ChunkSizes] = []


def chunk_sizes_for(device: torch.device) -> ChunkSizes:
    """Return the chunk sizes for a device, or those of the innermost `override_chunk_sizes`."""
    if _overrides:
        return _overrides[-1]
    return CPU_CHUNK_SIZES if device.type == "cpu" else ACCELERATOR_CHUNK_SIZES


@contextmanager
def override_chunk_sizes(chunk_sizes: ChunkSizes) -> Iterator[None]:
    """Use `chunk_sizes` within the block, whatever device tensors are on."""
    _overrides.append(chunk_sizes)
    try:
        yield
    finally:
        _overrides.pop()
