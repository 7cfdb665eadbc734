"""The function that does the work of a command, imported only when it is called."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def load_handler(handler: str) -> Callable[..., Any]:
    """Return the function that "module:function" names. The names are written in this project's code, never given by a user."""
    module, _, name = handler.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
