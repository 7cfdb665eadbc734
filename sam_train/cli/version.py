"""The version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed_version


def version() -> str:
    """Return the version of the installed package, "0+unknown" for a checkout that was not installed."""
    try:
        return _installed_version("sam-train")
    except PackageNotFoundError:
        return "0+unknown"
