"""Select a part of a sequence by its indices: an evenly spaced sample, or share I of N."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from sam_train.errors import ConfigError


def evenly_spaced_indices(total: int, count: int, *, at: Literal["start", "middle", "ends"] = "middle") -> list[int]:
    """Return at most `count` increasing indices of a sequence of `total` items, evenly spaced; all indices if `count` >= `total`.

    at: "start" and "middle" divide the sequence into `count` equal parts and take the first or the middle item of each;
        "ends" includes the first and the last item.
    """
    if count >= total:
        return list(range(total))
    if at == "ends":
        return [int(index) for index in np.linspace(0, total - 1, count).round()]
    if at == "start":
        return [k * total // count for k in range(count)]
    return [int((k + 0.5) * total / count) for k in range(count)]


def parse_slice(text: object) -> slice:
    """Parse "I/N" into a Python slice that selects every N-th item, starting from item I; I counts from 0.

    Raises ConfigError if `text` is not of this form or I is not below N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(text))
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"slice is {text!r}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8")
    return slice(int(match[1]), None, int(match[2]))
