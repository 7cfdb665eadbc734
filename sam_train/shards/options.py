"""Command-line options of `sam-data`, generated from signatures and docstrings, for importers and exporters alike.

A `Path` parameter becomes `--name PATH`, a `bool` a switch, a `Literal` of strings a choice, an `int`, `float` or `str` a
value, a `tuple[int, ...]` a list of numbers. A parameter without a default is required; underscores become dashes. The
parameter's entry in the `Args:` section of the docstring is the help text of the option.
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """Return type of `ArgumentParser.add_subparsers`, to which each `sam-data` command adds its parser."""

RENAMED_OPTIONS: Mapping[str, str] = {"form": "mask_format", "person": "annotator", "unpaired": "missing"}
"""Parameter of an importer or exporter in earlier versions -> its name today."""

RENAMED_VALUES: Mapping[str, str] = {"error": "stop", "skip": "leave_out"}
"""Value of a choice in earlier versions -> its name today."""

_ENTRY = re.compile(r"(\w+): ")


def add_command_from_function(commands: Commands, name: str, function: Callable[..., Any]) -> argparse.ArgumentParser:
    """Add a command whose help text is the docstring of `function` without its `Args:` and `Raises:` sections.

    `commands` must create parsers of the class `sam_train.cli.arguments.ArgumentParser`.
    """
    summary, *paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    details = "\n\n".join(text for text in paragraphs if not text.startswith(("Args:", "Raises:")))
    summary, details = summary.replace("`", ""), details.replace("`", "")
    parameters = inspect.signature(function).parameters
    return commands.add_parser(
        name,
        help=_escape(summary),
        description=_escape(summary),
        epilog=_escape(details),
        formatter_class=_ParagraphFormatter,
        renamed={_option(old): _option(new) for old, new in RENAMED_OPTIONS.items() if new in parameters},
    )


def add_options(parser: argparse.ArgumentParser, function: Callable[..., Any], *, exclude: Collection[str]) -> None:
    """Add an option for each parameter of `function` that is not in `exclude`."""
    types, descriptions = get_type_hints(function), _descriptions(function)
    parameters = _parameters(function, exclude)
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty
        settings: dict[str, Any] = {"required": True} if required else {"default": parameter.default}
        settings |= _settings(types[name])
        text = descriptions.get(name, "")
        if type(parameter.default) in (int, float) or settings.get("choices"):
            text += f" Default: {parameter.default}."
        parser.add_argument(_option(name), help=_escape(text.strip()), **settings)


def option_values(arguments: argparse.Namespace, function: Callable[..., Any], *, exclude: Collection[str]) -> dict[str, Any]:
    """Return the parsed values of the parameters of `function` that are not in `exclude`."""
    values = {name: getattr(arguments, name) for name in _parameters(function, exclude)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class _ParagraphFormatter(argparse.HelpFormatter):
    """Help formatter that wraps each paragraph of a text by itself."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return "\n\n".join(textwrap.fill(p, width, initial_indent=indent, subsequent_indent=indent) for p in paragraphs)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _settings(annotation: Any) -> dict[str, Any]:
    if annotation is bool:
        return {"action": "store_true"}
    if get_origin(annotation) is Literal:
        return {"type": _choice, "choices": get_args(annotation)}
    if tuple in (get_origin(annotation), *map(get_origin, get_args(annotation))):
        return {"type": int, "nargs": "*", "metavar": "N"}
    plain = next((part for part in get_args(annotation) if part is not NoneType), annotation)  # Path | None
    return {"type": plain, "metavar": "PATH" if plain is Path else plain.__name__.upper()}


def _choice(value: str) -> str:
    if value in RENAMED_VALUES:
        raise argparse.ArgumentTypeError(f"{value}: renamed to {RENAMED_VALUES[value]}")
    return value


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return the entries of the docstring's `Args:` section by parameter."""
    section = next((text for text in (inspect.getdoc(function) or "").split("\n\n") if text.startswith("Args:\n")), "")
    lines = textwrap.dedent(section.partition("\n")[2]).splitlines()
    descriptions: dict[str, str] = {}
    name = ""
    for line in lines:
        entry = _ENTRY.match(line)
        name = entry[1] if entry else name
        text = line[entry.end() :] if entry else line
        descriptions[name] = f"{descriptions.get(name, '')} {text.strip()}".strip()
    return {name: text.replace("`", "") for name, text in descriptions.items()}


def _parameters(function: Callable[..., Any], exclude: Collection[str]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in inspect.signature(function).parameters.items() if name not in exclude}
