"""Every command line of ours in the README's code blocks is one that the command takes."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data_engine import commands as engine_commands
from sam_train.cli import FunctionCommand, HydraCommand
from sam_train.cli import commands as train_commands
from sam_train.cli.data_command import parser
from sam_train.cli.overrides import checked_config, readable
from sam_train.config import config_dir
from sam_train.errors import ConfigError

README = Path(config_dir()).parent / "README.md"
COMMANDS: dict[str, HydraCommand | FunctionCommand] = {
    command.name: command
    for module in (train_commands, engine_commands)
    for command in vars(module).values()
    if isinstance(command, (HydraCommand, FunctionCommand))
}
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Lines of code blocks that start with one of our commands; a backslash at a line's end continues it."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ").strip() for line in lines if re.match(r"(\$ )?sam-[a-z]+\b", line)]


def check(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    if name == "sam-data":
        parser().parse_args(arguments)
        return
    if arguments and f"{name} {arguments[0]}" in COMMANDS:
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    command = COMMANDS[name]
    if isinstance(command, FunctionCommand):
        replace(command, paths=()).values_of(arguments)
        return
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [*command.preset, *(readable(argument) for argument in arguments if argument not in flags)]
    assert set(flags) <= {"-m", "--multirun", "--help", "--version", "--list-experiments"}
    checked_config(command, overrides, Path(config_dir()), multirun=bool({"-m", "--multirun"} & set(flags)))


@pytest.mark.parametrize("command", commands(README.read_text()))
def test_command_is_taken(command: str) -> None:
    check(command)


def test_commands_are_found() -> None:
    text = "```\nsam-train a=1 \\\n  b=2   # why\nls\n```\nsam-train not this\n```bash\n$ sam-data import x\n```\n"
    assert commands(text) == ["sam-train a=1    b=2   # why", "sam-data import x"]


@pytest.mark.parametrize("command", ["sam-train experimnt=nuclei", "sam-train data.sharsd=x", "sam-nothing"])
def test_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises(Exception, match=r"experimnt|sharsd|sam-nothing"):
        check(command)


@pytest.mark.parametrize(
    "command", ["sam-report run=runs/quickstart", "sam-cycle rollback run=RUN step=STEP reason=WHY", "sam-cycle ledger run=RUN"]
)
def test_words_of_other_commands_are_taken(command: str) -> None:
    check(command)


@pytest.mark.parametrize("command", ["sam-report folder=RUN", "sam-cycle rollback step=2", "sam-cycle ledger run=RUN images=x"])
def test_wrong_word_is_noticed(command: str) -> None:
    with pytest.raises((SystemExit, ConfigError)):
        check(command)


def test_wrong_import_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check("sam-data import nothing --out x")
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
