"""Every command line of ours in the README's code blocks is one that the command takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from data_engine.annotate import ACTIONS
from data_engine.cycle.command import WORDS, values_of
from data_engine.report.__main__ import parsed
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.shards.cli import parser

README = Path(config_dir()).parent / "README.md"
ROOTS = {
    "sam-train": "train",
    "sam-evaluate": "evaluate",
    "sam-engine": "engine",
    "sam-annotate": "annotate",
    "sam-cycle": "cycle",
    "sam-export": "export",
} | {"sam-train plan": "plan"}
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Lines of code blocks that start with one of our commands; a backslash at a line's end continues it."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ").strip() for line in lines if re.match(r"(\$ )?sam-[a-z]+\b", line)]


def check(command: str) -> None:
    name, *arguments = shlex.split(command, comments=True)
    if (name, arguments[:1]) == ("sam-train", ["plan"]):
        name, arguments = "sam-train plan", arguments[1:]
    if name == "sam-data":
        parser().parse_args(arguments)
        return
    if name == "sam-report":
        parsed(arguments)
        return
    if name == "sam-cycle" and arguments and arguments[0] in WORDS:
        values_of(WORDS[arguments[0]], arguments[1:])
        return
    if name == "sam-annotate" and arguments[0] in ACTIONS:
        arguments[0] = f"action={arguments[0]}"
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        compose(ROOTS[name], overrides=[argument for argument in arguments if argument not in ("-m", "--multirun", "--help")])


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
    "command", ["sam-report run=runs/quickstart", "sam-cycle rollback run=RUN step=STEP because=WHY", "sam-cycle ledger run=RUN"]
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
