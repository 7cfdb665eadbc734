"""The text of `--help`, of `--help GROUP` and of `--list-experiments`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam_train.cli.config_files import Experiment, Group, Key, header_of, read_experiments, read_groups, read_keys
from sam_train.cli.suggestions import did_you_mean
from sam_train.errors import ConfigError

if TYPE_CHECKING:
    from sam_train.cli.hydra_command import HydraCommand

_FLAGS = (
    ("-h, --help [GROUP]", "show this help, or the keys of a group's options"),
    ("--version", "print the version"),
    ("--list-experiments", "list the experiments with what they cost and what to expect"),
    ("-m, --multirun", "run once for each combination of comma-separated values"),
    ("--cfg job", "print the composed config and do nothing"),
    ("--hydra-help", "list the flags of Hydra, which reads the config"),
)


def command_help(command: HydraCommand, configs: Path) -> str:
    """Return the help of a command: its use, examples, sub-commands, groups, keys and flags."""
    path = configs / f"{command.config}.yaml"
    experiments = [e.name for e in read_experiments(configs / "experiment").values() if e.command == command.program]
    groups = read_groups(path)
    sub = " [SUB-COMMAND]" if command.subcommands else ""
    lines = [f"{command.name}: {command.summary}", "", f"Usage: {command.name}{sub} [KEY=VALUE ...] [GROUP=OPTION ...]"]
    lines += ["", "Examples:", *_examples(command.examples)]
    if command.subcommands:
        rows = [(name, sub.summary) for name, sub in command.subcommands.items()]
        lines += ["", f"Sub-commands ({command.name} SUB-COMMAND --help):", *_rows(rows)]
    if groups:
        lines += ["", f"Groups ({command.name} --help GROUP shows the keys of its options; the default comes first):"]
        lines += _rows([(group.name, _options(group)) for group in groups])
    if experiments and command.has_experiments:
        lines += ["", f"Experiments ({command.program} --list-experiments says what each costs):"]
        listed = ", ".join(f"experiment={name}" for name in experiments)
        lines += textwrap.wrap(listed, _width(), initial_indent="  ", subsequent_indent="  ")
    lines += ["", "Keys (default in brackets):", *_rows([(key.name, _default_and_comment(key)) for key in _described(path)])]
    flags = [row for row in _FLAGS if command.has_experiments or row[0] != "--list-experiments"]
    lines += ["", "Flags:", *_rows(flags)]
    return "\n".join(lines)


def group_help(command: HydraCommand, name: str, configs: Path) -> str:
    """Return the keys of each option of a group. Raises ConfigError for a name that is not a group of the command."""
    groups = {group.name: group for group in read_groups(configs / f"{command.config}.yaml")}
    name, _, option = name.partition("=")
    folder = configs / name
    if name not in groups and name.isidentifier() and folder.is_dir() and name != "experiment":  # a group inside a group's option
        options = tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        groups[name] = Group(name=name, default="", comment="", options=options)
    if name not in groups:
        hint = did_you_mean(name, groups, end=" ")
        raise ConfigError(f"{command.name} has no group {name!r}: {hint}its groups are {', '.join(groups)}")
    group = groups[name]
    if option and option not in group.options:
        hint = did_you_mean(option, group.options, end=" ")
        raise ConfigError(f"{name} has no option {option!r}: {hint}expected {', '.join(group.options)}")
    lines = [f"{name}: {group.comment}".rstrip(": ")]
    for chosen in [option] if option else group.options:
        path = configs / name.partition("@")[0] / f"{chosen}.yaml"
        lines += ["", f"{name}={chosen}" + (" (default)" if chosen == group.default else "")]
        lines += [f"  {line}" for line in header_of(path).splitlines()]
        lines += _rows([(f"  {key.name}", _default_and_comment(key)) for key in _described(path)])
        for inner in read_groups(path):
            inner_name = inner.name.strip("/").partition("@")
            place = f"{name.rpartition('@')[2]}.{inner_name[2]}"
            lines += [f"    {place}.* are the keys of the group {inner_name[0]} ({command.name} --help {inner_name[0]}),"]
            lines += [f"    {inner_name[0]}@{place}=OPTION chooses another one; the default is {inner.default}"]
    return "\n".join(lines)


def experiments_help(command: HydraCommand, configs: Path) -> str:
    """Return the experiments of a command: title, cost and what to expect."""
    experiments = [e for e in read_experiments(configs / "experiment").values() if e.command == command.program]
    if not experiments:
        return f"{command.name} has no experiments."
    lines: list[str] = []
    for experiment in experiments:
        lines += [f"experiment={experiment.name}", *_experiment(experiment), ""]
    return "\n".join(lines[:-1])


def _described(path: Path) -> list[Key]:
    """Return the keys of a file without those that only hold others."""
    return [key for key in read_keys(path) if key.value or key.comment]


def _default_and_comment(key: Key) -> str:
    return " ".join(filter(None, (f"[{key.value}]" if key.value else "", key.comment)))


def _experiment(experiment: Experiment) -> list[str]:
    rows = [("Title", experiment.title), ("Cost", experiment.cost), ("Expect", experiment.expect)]
    return _rows([(f"  {name}", text) for name, text in rows if text])


def _examples(examples: Sequence[tuple[str, str]]) -> list[str]:
    return [line for command, text in examples for line in (f"  {command}", f"      {text}")]


def _options(group: Group) -> str:
    options = [group.default, *(option for option in group.options if option != group.default)]
    return f"{group.comment} ({', '.join(options)})".lstrip()


def _rows(rows: Iterable[tuple[str, str]] | Mapping[str, str]) -> list[str]:
    """Return two columns, the second one wrapped to the width of the terminal."""
    listed = list(rows.items() if isinstance(rows, Mapping) else rows)
    column = min(26, max((len(name) for name, _ in listed), default=0)) + 4
    lines: list[str] = []
    for name, text in listed:
        first = f"  {name}".ljust(column)
        if len(first) > column and text:
            lines.append(first)
            first = " " * column
        wrapped = textwrap.wrap(text, max(40, _width() - column)) or [""]
        lines += [(first + wrapped[0]).rstrip(), *(" " * column + more for more in wrapped[1:])]
    return lines


def _width() -> int:
    return min(120, shutil.get_terminal_size((100, 24)).columns)
