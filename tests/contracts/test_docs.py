"""README.md and docs/: every command line is accepted by its command, every relative link leads to a file and a heading."""

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

ROOT = Path(config_dir()).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, HydraCommand | FunctionCommand] = {
    command.name: command
    for module in (train_commands, engine_commands)
    for command in vars(module).values()
    if isinstance(command, (HydraCommand, FunctionCommand))
}
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def commands(text: str) -> list[str]:
    """Return the lines of code blocks that begin with one of our commands; a backslash at the end of a line continues it."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^sbatch( --\S+)* slurm/train\.sbatch", "sam-train", line) for line in lines]
    lines = [re.sub(r"^sbatch( --\S+)* slurm/engine_array\.sbatch", "sam-engine", line) for line in lines]
    return [line.removeprefix("$ ").strip() for line in lines if re.match(r"(\$ )?sam-[a-z]+\b", line)]


def check(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    if name == "sam-data":
        parser(arguments[:1]).parse_args(arguments)
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
    if "--help" not in flags:
        checked_config(command, overrides, Path(config_dir()), multirun=bool({"-m", "--multirun"} & set(flags)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site generator make them."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(BLOCK, "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page.read_text())}))
def test_documented_command_is_accepted(line: str) -> None:
    check(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(re.sub(BLOCK, "", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_every_page_is_in_the_navigation() -> None:
    nav = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert nav == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_readme_is_short() -> None:
    assert 120 <= len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_commands_are_found() -> None:
    text = "```\nsam-train a=1 \\\n  b=2   # why\nls\n```\nsam-train not this\n```bash\n$ sam-data import x\n```\n"
    assert commands(text) == ["sam-train a=1    b=2   # why", "sam-data import x"]


@pytest.mark.parametrize("line", ["sam-train experimnt=nuclei", "sam-train data.sharsd=x", "sam-nothing"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((ConfigError, KeyError), match=r"experimnt|sharsd|sam-nothing"):
        check(line)


@pytest.mark.parametrize("line", ["sam-report folder=RUN", "sam-cycle rollback step=2", "sam-cycle ledger run=RUN images=x"])
def test_a_wrong_parameter_is_noticed(line: str) -> None:
    with pytest.raises(ConfigError):
        check(line)


def test_a_wrong_import_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check("sam-data import nothing --out x")
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
