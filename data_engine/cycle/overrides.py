"""Values and groups of values in Hydra's grammar of overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def hydra_quote(value: str | Path | Sequence[str]) -> str:
    """Return the value of an override. Commas, brackets, spaces and equal signs in a path have a meaning in Hydra's grammar."""
    if not isinstance(value, (str, Path)):
        return f"[{','.join(hydra_quote(item) for item in value)}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"  # a backslash is an escape only before a quote


def training_data_overrides(
    human_shards: Sequence[str | Path], automatic_shards: Sequence[str | Path], *, human_mask_weight: float
) -> list[str]:
    """Return the overrides of sam-train that name its training data.

    `human_shards` are those of stages one and two, which annotators worked on, `automatic_shards` those of stage three. An
    image of the former is sampled `human_mask_weight` times as often as one of the latter (paper, section B: ten times).
    """
    shards, sources = "null", "null"
    if not human_shards or not automatic_shards or human_mask_weight == 1:
        shards = hydra_quote([str(path) for path in [*human_shards, *automatic_shards]])
    else:
        weighted = ((human_shards, human_mask_weight), (automatic_shards, 1))
        lists = (f"{{shards:{hydra_quote([str(path) for path in paths])},weight:{weight}}}" for paths, weight in weighted)
        sources = f"[{','.join(lists)}]"
    return [f"data.shards={shards}", f"data.sources={sources}"]
