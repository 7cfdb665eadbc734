"""Random numbers for packed prompts.

The simulator draws for all prompts of a batch at once. With a single generator, the numbers of a prompt depend on the rest of
the batch, and so on the number of devices that share a step. `PerImageRng` gives each image its own stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class PerImageRng:
    """One stream of random numbers for each image of a batch; a stream is a pure function of its seed.

    seeds: a tuple of non-negative integers for each of the B images.
    image_index: index of the image of each of the N prompts. The prompts of an image take its numbers in their order.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], image_index: Int[Tensor, " N"]) -> None:
        self._generators = [seeded_generator(seed) for seed in seeds]
        self._counts = torch.bincount(image_index.cpu(), minlength=len(seeds)).tolist()
        self._order = image_index.cpu().argsort(stable=True)
        self.device = torch.device("cpu")

    def draw(self, sampler: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """Return random numbers of `shape`, one row for each of the N prompts.

        sampler: torch.rand or torch.randn.

        Raises ValueError if the number of rows is not N.
        """
        if shape[0] != len(self._order):
            raise ValueError(f"cannot draw {shape[0]} rows for {len(self._order)} prompts: draw one row for each prompt")
        rows = [sampler(count, *shape[1:], generator=g) for count, g in zip(self._counts, self._generators, strict=True)]
        numbers = torch.empty(shape)
        numbers[self._order] = torch.cat(rows)
        return numbers


PromptRng: TypeAlias = torch.Generator | PerImageRng
"""Source of random numbers for packed prompts: one stream for all prompts, or one for each image."""


def seeded_generator(seed: tuple[int, ...]) -> torch.Generator:
    """Return a CPU generator for a tuple of non-negative integers. Different tuples give independent streams."""
    return torch.Generator().manual_seed(hash_seed(seed))


def hash_seed(seed: tuple[int, ...]) -> int:
    """Return the 64 bits to which NumPy's SeedSequence hashes a tuple of non-negative integers."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def uniform(rng: PromptRng, *shape: int) -> Float[Tensor, "..."]:
    """Return uniform numbers in [0, 1), one row for each prompt, on the device of `rng`."""
    return _draw(rng, torch.rand, shape)


def normal(rng: PromptRng, *shape: int) -> Float[Tensor, "..."]:
    """Return standard normal numbers, one row for each prompt, on the device of `rng`."""
    return _draw(rng, torch.randn, shape)


def _draw(rng: PromptRng, sampler: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    if isinstance(rng, PerImageRng):
        return rng.draw(sampler, shape)
    return sampler(shape, generator=rng, device=rng.device)
