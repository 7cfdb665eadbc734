"""Promptable segmentation by the recipe of Segment Anything (arXiv 2304.02643): use, train, evaluate and export models.

    from sam_train import load_predictor

    predictor = load_predictor("mobile_sam.pth")

The names below are the public interface; they are imported on first use, so that `import sam_train` itself is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_train.checkpoint import load_checkpoint
    from sam_train.inference import AutomaticMaskGenerator, Predictor, load_predictor

    __version__: str

__all__ = ["AutomaticMaskGenerator", "Predictor", "__version__", "load_checkpoint", "load_predictor"]

_MODULES = {
    "AutomaticMaskGenerator": "sam_train.inference",
    "Predictor": "sam_train.inference",
    "load_checkpoint": "sam_train.checkpoint",
    "load_predictor": "sam_train.inference",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("sam_train.cli.version").version()
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
