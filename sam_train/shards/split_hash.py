"""Assignment of images to splits by a hash of their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def is_held_out(key: str, *, holdout: float, seed: int) -> bool:
    """Whether an image belongs to the held-out `holdout` (0..1) of its data set.

    Depends on the key and the seed alone, so no image changes sides when others come or go.
    """
    return assign_split(key, {"train": 1 - holdout, "heldout": holdout}, seed=seed) == "heldout"


def assign_split(key: str, fractions: Mapping[str, float], *, seed: int) -> str:
    """The name of the split that an image belongs to; the fractions add up to 1.

    Depends on the key, the seed and the fractions alone. The shares are laid from the last name to the first, so a last
    split that grows takes images in and gives none away.
    """
    place, end = _place(key, seed), 0.0
    *others, first = reversed([*fractions])
    for name in others:
        end += fractions[name]
        if place < end * 2**64:
            return name
    return first


def _place(key: str, seed: int) -> int:
    """A number below 2**64 that looks drawn at random."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")
