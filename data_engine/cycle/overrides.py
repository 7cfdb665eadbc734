"""Values in Hydra's grammar of overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def hydra_quote(value: str | Path | Sequence[str]) -> str:
    """The value of an override. In Hydra's grammar commas, brackets, spaces and equal signs of a path have a meaning."""
    if not isinstance(value, (str, Path)):
        return f"[{','.join(hydra_quote(item) for item in value)}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"  # a backslash counts only before a quote


def training_data_overrides(
    by_people: Sequence[str | Path], by_models: Sequence[str | Path], *, human_mask_weight: float
) -> list[str]:
    """What a training sees, as overrides: shards that people had a hand in, and those of stage three.

    Of the first a picture comes `human_mask_weight` times as often as of the second (paper, section B: ten times).
    """
    shards, sources = "null", "null"
    if not by_people or not by_models or human_mask_weight == 1:
        shards = hydra_quote([str(path) for path in [*by_people, *by_models]])
    else:
        weighted = ((by_people, human_mask_weight), (by_models, 1))
        lists = (f"{{shards:{hydra_quote([str(path) for path in paths])},weight:{weight}}}" for paths, weight in weighted)
        sources = f"[{','.join(lists)}]"
    return [f"data.shards={shards}", f"data.sources={sources}"]
