"""Values in Hydra's grammar of overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def quoted(value: str | Path | Sequence[str]) -> str:
    """The value of an override. In Hydra's grammar commas, brackets, spaces and equal signs of a path have a meaning."""
    if not isinstance(value, (str, Path)):
        return f"[{','.join(quoted(item) for item in value)}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"  # a backslash counts only before a quote
