"""Console script `sam-train`: trains; `sam-train plan` says what that would cost."""

from __future__ import annotations

import sys


def main() -> None:
    """The first word decides; the rest is Hydra's."""
    if sys.argv[1:2] == ["plan"]:
        del sys.argv[1]
        from sam_train.plan import main as command
    else:
        from sam_train.train import main as command
    command()
