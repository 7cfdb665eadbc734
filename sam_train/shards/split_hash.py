"""Assignment of images to splits by a hash of their keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def is_held_out(key: str, *, holdout: float, seed: int) -> bool:
    """Return whether an image belongs to the held-out fraction `holdout` (0..1) of its data set.

    The result depends on the key and the seed only, so an image stays in its split when other images are added or removed.
    """
    return assign_split(key, {"train": 1 - holdout, "heldout": holdout}, seed=seed) == "heldout"


def assign_split(key: str, fractions: Mapping[str, float], *, seed: int) -> str:
    """Return the name of the split that an image belongs to; the fractions add up to 1.

    The result depends on the key, the seed and the fractions only. The fractions are laid out from the last name to the
    first, so that a last split that grows gains images and loses none.
    """
    position, end = _hash_position(key, seed), 0.0
    *others, first = reversed([*fractions])
    for name in others:
        end += fractions[name]
        if position < end * 2**64:
            return name
    return first


def _hash_position(key: str, seed: int) -> int:
    """Return a pseudo-random 64-bit integer."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")
