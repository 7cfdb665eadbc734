"""The console to which the commands of the data engine print. It does not highlight or wrap, so paths can be copied."""

from __future__ import annotations

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
