"""A console command whose values are a Hydra config.

The overrides are checked before anything heavy is imported: names that were renamed, misspelled keys, options and
experiments, values that Hydra's grammar cannot read, keys that must be given, and paths that do not exist. Then Hydra
composes the config and calls the command's handler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_train.cli.function_command import FunctionCommand
from sam_train.cli.handlers import load_handler
from sam_train.cli.suggestions import did_you_mean
from sam_train.errors import ConfigError, exit_with_message

_OWN_FLAGS = ("--help", "-h", "--version", "--list-experiments")
_INFORMATION_FLAGS = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc")
_OTHER_CONFIG_FLAGS = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun")
_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", *_OTHER_CONFIG_FLAGS)
_FLAGS = (*_OWN_FLAGS, *_INFORMATION_FLAGS, *_FLAGS_WITH_VALUE, "--multirun", "-m", "--run", "-r", "--resolve")


@dataclass(frozen=True, kw_only=True)
class HydraCommand:
    """A command, or a sub-command, with a config of its own.

    name: as typed, such as "sam-train plan".
    config: name of its config file, without suffix.
    summary: one sentence.
    handler: "module:function"; the function takes the composed DictConfig.
    examples: command lines and what each does.
    subcommands: by their first word.
    required: keys that must have a value, each with an example of one.
    inputs: keys whose value is a local path that must exist; one with wildcards, braces or a scheme (s3://) is not checked here.
    preset: overrides that come before the user's.
    has_experiments: whether `experiment=` is one of its groups.
    """

    name: str
    config: str
    summary: str
    handler: str
    examples: Sequence[tuple[str, str]]
    subcommands: Mapping[str, HydraCommand | FunctionCommand] = field(default_factory=dict)
    required: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    preset: Sequence[str] = ()
    has_experiments: bool = False

    @property
    def program(self) -> str:
        """The console script, which experiments name in their header."""
        return self.name.partition(" ")[0]

    def main(self) -> None:
        """Run the command on the process's own arguments. An expected error ends it with one message and exit code 1."""
        exit_with_message(self.run)(sys.argv[1:])

    def run(self, arguments: Sequence[str]) -> None:
        """Run the command or the sub-command that the first word names. Raises ConfigError for a wrong command line."""
        first = arguments[0] if arguments else ""
        if (subcommand := self.subcommands.get(first)) is not None:
            subcommand.run(arguments[1:])
        elif first and "=" not in first and first[0] not in "-~+":
            hint = did_you_mean(first, self.subcommands, end=" ")
            known = f"its sub-commands are {', '.join(self.subcommands)}" if self.subcommands else "values are given as KEY=VALUE"
            raise ConfigError(f"{self.name} has no sub-command {first!r}: {hint}{known}")
        elif not self._print_help(arguments):
            self._run_hydra(arguments)

    def _print_help(self, arguments: Sequence[str]) -> bool:
        """Print the answer to a flag of this project. Return whether there was one. Raises ConfigError for an unknown flag."""
        from sam_train.config import config_dir

        configs = Path(config_dir())
        for i, argument in enumerate(arguments):
            flag = argument.partition("=")[0]
            if flag in ("-h", "--help"):
                from sam_train.cli.help import command_help, group_help

                group = next((a for a in arguments[i + 1 :] if not a.startswith("-")), "")
                print(group_help(self, group, configs) if group else command_help(self, configs))
                return True
            if flag == "--version":
                from sam_train.cli.version import version

                print(f"{self.program} {version()}")
                return True
            if flag == "--list-experiments":
                from sam_train.cli.help import experiments_help

                print(experiments_help(self, configs))
                return True
            if argument.startswith("-") and flag not in _FLAGS:
                hint = did_you_mean(flag, _FLAGS)
                raise ConfigError(f"{self.name} has no flag {flag!r}: {hint or f'{self.name} --help lists them'}")
        return False

    def _run_hydra(self, arguments: Sequence[str]) -> None:
        import hydra

        from sam_train.cli.overrides import check_inputs, check_required, checked_config, readable
        from sam_train.config import config_dir

        flags, overrides = _split(arguments)
        overrides = [*self.preset, *(readable(override) for override in overrides)]
        if not any(flag.partition("=")[0] in (*_INFORMATION_FLAGS, *_OTHER_CONFIG_FLAGS) for flag in flags):
            cfg = checked_config(self, overrides, Path(config_dir()), multirun="-m" in flags or "--multirun" in flags)
            if "--cfg" not in flags and "-c" not in flags:
                check_required(cfg, self.required, self.name)
                check_inputs(cfg, self.inputs)
        sys.argv = [sys.argv[0], *flags, *overrides]
        hydra.main(config_path=config_dir(), config_name=self.config, version_base="1.3")(self._task())()

    def _task(self) -> Callable[[Any], None]:
        """Return the function that Hydra calls. It holds only the handler's name, so that a launcher can send it to a job."""
        handler = self.handler

        @exit_with_message
        def task(cfg: Any) -> None:
            load_handler(handler)(cfg)

        return task


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Hydra's flags with their values, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for argument in arguments:
        if takes_value or argument.startswith("-"):
            flags.append(argument)
            takes_value = not takes_value and argument in _FLAGS_WITH_VALUE
        else:
            overrides.append(argument)
    return flags, overrides
