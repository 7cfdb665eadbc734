"""Chance for packed prompts.

A simulator draws for all prompts of a batch at once. With one generator for the batch, what a prompt is dealt depends on
who else is in the batch, and so on how many devices share a step. `PerImageRng` gives each image a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class PerImageRng:
    """One stream of random numbers for each image of a batch, each a pure function of its seed.

    seeds: a tuple of non-negative integers for each of the B images.
    image_index: whose each of the N prompts is. Numbers come to the prompts of an image in their order.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], image_index: Int[Tensor, " N"]) -> None:
        self._generators = [seeded_generator(seed) for seed in seeds]
        self._counts = torch.bincount(image_index.cpu(), minlength=len(seeds)).tolist()
        self._order = image_index.cpu().argsort(stable=True)
        self.device = torch.device("cpu")

    def draw(self, make: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """`make` is torch.rand or torch.randn; a row for each prompt. Raises ValueError for another number of rows."""
        if shape[0] != len(self._order):
            raise ValueError(f"{shape[0]} rows were asked for {len(self._order)} prompts: draw for all of them")
        rows = [make(count, *shape[1:], generator=g) for count, g in zip(self._counts, self._generators, strict=True)]
        drawn = torch.empty(shape)
        drawn[self._order] = torch.cat(rows)
        return drawn


PromptRng: TypeAlias = torch.Generator | PerImageRng
"""One stream for all prompts, or one for each image."""


def seeded_generator(seed: tuple[int, ...]) -> torch.Generator:
    """A generator on the CPU for a tuple of non-negative integers; other tuples give streams that are independent of it."""
    return torch.Generator().manual_seed(hash_seed(seed))


def hash_seed(seed: tuple[int, ...]) -> int:
    """64 bits that NumPy's SeedSequence makes of a tuple of non-negative integers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def uniform(draws: PromptRng, *shape: int) -> Float[Tensor, "..."]:
    """Numbers in [0, 1), a row for each prompt; on the CPU or where the generator is."""
    return draws.draw(torch.rand, shape) if isinstance(draws, PerImageRng) else _of(draws, torch.rand, shape)


def normal(draws: PromptRng, *shape: int) -> Float[Tensor, "..."]:
    """Standard normal numbers, a row for each prompt; on the CPU or where the generator is."""
    return draws.draw(torch.randn, shape) if isinstance(draws, PerImageRng) else _of(draws, torch.randn, shape)


def _of(generator: torch.Generator, make: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    return make(shape, generator=generator, device=generator.device)
