"""The help of every command: nothing lacks its text, and what it shows is what the configs hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from data_engine import commands as engine_commands
from sam_train.cli import FunctionCommand, HydraCommand
from sam_train.cli import commands as train_commands
from sam_train.cli.config_files import read_experiments, read_groups, read_keys
from sam_train.cli.data_command import COMMANDS as DATA_COMMANDS
from sam_train.cli.data_command import parser
from sam_train.cli.handlers import load_handler
from sam_train.cli.help import command_help, experiments_help, group_help
from sam_train.config import config_dir

CONFIGS = Path(config_dir())
ALL = [c for m in (train_commands, engine_commands) for c in vars(m).values() if isinstance(c, (HydraCommand, FunctionCommand))]
HYDRA = [command for command in ALL if isinstance(command, HydraCommand)]
PROGRAMS = {"sam-train", "sam-cycle"}


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_every_handler_exists_and_every_example_is_a_command_line(command: HydraCommand | FunctionCommand) -> None:
    assert callable(load_handler(command.handler))
    assert len(command.examples) >= 1 if isinstance(command, FunctionCommand) else len(command.examples) == 2
    assert all(
        line.startswith(command.program if isinstance(command, HydraCommand) else command.name) for line, _ in command.examples
    )


@pytest.mark.parametrize("command", HYDRA, ids=lambda command: command.name)
def test_the_keys_of_the_help_are_those_of_the_config(command: HydraCommand) -> None:
    keys = {key.name for key in read_keys(CONFIGS / f"{command.config}.yaml")}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        cfg = compose(command.config)
    assert keys
    assert [key for key in keys if OmegaConf.is_missing(cfg, key) or key.partition(".")[0] not in cfg] == []


@pytest.mark.parametrize("command", HYDRA, ids=lambda command: command.name)
def test_every_group_has_a_line_and_help_of_its_own(command: HydraCommand) -> None:
    groups = read_groups(CONFIGS / f"{command.config}.yaml")
    assert [group.name for group in groups if not group.comment] == []
    text = command_help(command, CONFIGS)
    for group in groups:
        assert f"\n  {group.name}" in text
        assert group.default == "null" or group.default in group.options
        assert f"{group.name}=" in group_help(command, group.name, CONFIGS)


def test_every_experiment_names_its_command_title_cost_and_expectation() -> None:
    experiments = read_experiments(CONFIGS / "experiment")
    assert len(experiments) > 10
    assert [e.name for e in experiments.values() if e.command not in PROGRAMS or not (e.title and e.cost and e.expect)] == []
    listed = experiments_help(train_commands.TRAIN, CONFIGS) + experiments_help(engine_commands.CYCLE, CONFIGS)
    assert all(f"experiment={name}\n" in listed for name in experiments)


def test_short_help_of_sam_data_is_that_of_its_commands() -> None:
    whole, short = parser(), parser(())
    rows = [
        [(row.dest, row.help) for action in p._actions for row in getattr(action, "_choices_actions", ())] for p in (whole, short)
    ]
    assert rows[0] == rows[1]
    assert [name for name, _ in rows[0]] == list(DATA_COMMANDS)
