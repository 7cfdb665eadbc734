"""Command-line options made of a function's signature, for importers and exporters alike.

A `Path` becomes `--name PATH`, a `bool` a switch, a `Literal` of strings a choice, an `int`, `float` or `str` a value. What
has no default is required; underscores become dashes.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_options(parser: argparse.ArgumentParser, function: Callable[..., Any], *, but: Collection[str]) -> None:
    """Add an option for each parameter of `function` that is not in `but`."""
    types = get_type_hints(function)
    for name, parameter in _parameters(function, but).items():
        required = parameter.default is parameter.empty
        settings: dict[str, Any] = {"required": True} if required else {"default": parameter.default}
        parser.add_argument("--" + name.replace("_", "-"), **{**settings, **_settings(types[name])})


def option_values(arguments: argparse.Namespace, function: Callable[..., Any], *, but: Collection[str]) -> dict[str, Any]:
    """What the parsed command says for the parameters of `function` that are not in `but`."""
    return {name: getattr(arguments, name) for name in _parameters(function, but)}


def _settings(of_type: Any) -> dict[str, Any]:
    if of_type is bool:
        return {"action": "store_true"}
    if get_origin(of_type) is Literal:
        return {"choices": get_args(of_type)}
    plain = next((part for part in get_args(of_type) if part is not NoneType), of_type)  # Path | None
    return {"type": plain, "metavar": "PATH" if plain is Path else plain.__name__.upper()}


def _parameters(function: Callable[..., Any], but: Collection[str]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in inspect.signature(function).parameters.items() if name not in but}
