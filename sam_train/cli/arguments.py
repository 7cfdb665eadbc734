"""An argparse parser that suggests the nearest name and says what a renamed option is called today."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sam_train.cli.suggestions import did_you_mean
from sam_train.cli.version import version

_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)")
_UNRECOGNISED = re.compile(r"unrecognized arguments: (?P<given>.*)")


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` with "did you mean" in its errors; it accepts no abbreviated options.

    renamed: option of an earlier version (`--old`) and its name today; giving an old one is an error that says so.
    """

    def __init__(self, *args: Any, renamed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.renamed = dict(renamed or {})

    def add_version(self) -> None:
        """Add `--version`, which prints the version of the package."""
        self.add_argument("--version", action="version", version=f"{self.prog} {version()}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does, after renamed options were refused, and refuse what this parser does not know.

        argparse leaves the arguments that a sub-command does not know to its root parser, whose message could suggest none of the
        sub-command's options.
        """
        for argument in args or ():
            if (new := self.renamed.get(str(argument).partition("=")[0])) is not None:
                self.error(f"{str(argument).partition('=')[0]} was renamed to {new}")
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with the nearest names, and exit with code 2."""
        super().error(_with_suggestion(message, self._option_string_actions))


def _with_suggestion(message: str, options: Sequence[str] | Mapping[str, Any]) -> str:
    if match := _CHOICE.search(message):
        hint = did_you_mean(match["given"], re.findall(r"[\w.-]+", match["known"]))
    elif match := _UNRECOGNISED.search(message):
        hint = did_you_mean(match["given"].split()[0].partition("=")[0], options)
    else:
        hint = ""
    return f"{message}; {hint}" if hint else message
