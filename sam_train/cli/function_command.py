"""Sub-commands that take NAME=VALUE for the parameters of one function."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_train.cli.handlers import load_handler
from sam_train.cli.suggestions import did_you_mean
from sam_train.cli.version import version
from sam_train.errors import ConfigError, exit_with_message


@dataclass(frozen=True, kw_only=True)
class FunctionCommand:
    """A command that calls a function with the strings given as NAME=VALUE.

    name: as typed, such as "sam-cycle ledger".
    summary: one sentence.
    handler: "module:function"; the function takes keyword arguments that are strings.
    parameters: name and description of each parameter.
    required: the parameters that must be given.
    examples: command lines and what each does.
    paths: the parameters that name a file or folder that must exist.
    renamed: parameter of an earlier version, and its name today.
    """

    name: str
    summary: str
    handler: str
    parameters: Mapping[str, str]
    required: Sequence[str] = ()
    examples: Sequence[tuple[str, str]] = ()
    paths: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def main(self) -> None:
        """Run the command on the process's own arguments. An expected error ends it with one message and exit code 1."""
        exit_with_message(self.run)(sys.argv[1:])

    def run(self, arguments: Sequence[str]) -> None:
        """Call the function, or print the help. Raises ConfigError for a name that is not a parameter or is missing."""
        if any(argument in ("-h", "--help") for argument in arguments):
            print(self.help())
            return
        if any(argument == "--version" for argument in arguments):
            print(f"{self.name.partition(' ')[0]} {version()}")
            return
        values = self.values_of(arguments)
        load_handler(self.handler)(**values)

    def values_of(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the value of each given parameter. Raises ConfigError for an unknown, renamed or missing one."""
        values: dict[str, Any] = {}
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if name in self.renamed:
                raise ConfigError(f"{name}: renamed to {self.renamed[name]}")
            if not equals or name not in self.parameters:
                option = name.lstrip("-").replace("-", "_")
                hint = f"give {option}=... " if option in self.parameters else did_you_mean(name, self.parameters, end=" ")
                raise ConfigError(f"{self.name} does not take {argument!r}: {hint}expected {self.usage()}")
            if name in self.paths and not Path(value).exists():
                raise ConfigError(f"{name}={value}: no such file or folder: give the {self.parameters[name]}")
            values[name] = value
        if missing := [name for name in self.required if name not in values]:
            raise ConfigError(f"{', '.join(missing)} is missing: expected {self.usage()}")
        return values

    def usage(self) -> str:
        """Return the parameters as they are typed, optional ones in brackets."""
        return " ".join(f"{name}=..." if name in self.required else f"[{name}=...]" for name in self.parameters)

    def help(self) -> str:
        """Return the text of `--help`."""
        width = max(map(len, self.parameters))
        lines = [f"{self.name}: {self.summary}", "", f"Usage: {self.name} {self.usage()}", "", "Parameters:"]
        lines += [f"  {name:<{width}}  {text}" for name, text in self.parameters.items()]
        if self.examples:
            lines += ["", "Examples:"]
            for command, text in self.examples:
                lines += [f"  {command}", f"      {text}"]
        return "\n".join(lines)
