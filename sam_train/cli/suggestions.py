"""Suggestions for a misspelled name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], end: str = "") -> str:
    """Return "did you mean a or b?" for the names nearest to `name`, an empty string if none is near.

    end: text after the question, such as a blank where a sentence follows.

    Dotted keys are compared as a whole and by their last part, so that `shards` suggests `data.shards`; not if that part is
    itself a name that is near.
    """
    names = list(dict.fromkeys(known))
    near = get_close_matches(name, names, n=3, cutoff=0.66)
    leaves: dict[str, list[str]] = {}
    for known_name in names:
        leaves.setdefault(known_name.rpartition(".")[2], []).append(known_name)
    for leaf in get_close_matches(name.rpartition(".")[2], list(leaves), n=2, cutoff=0.8):
        near += leaves[leaf]
    unique = [name for name in dict.fromkeys(near) if name.rpartition(".")[2] not in near or "." not in name][:3]
    return f"did you mean {' or '.join(unique)}?{end}" if unique else ""
