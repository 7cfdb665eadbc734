"""Checks of a Hydra command line before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_train.cli.config_files import read_experiments, read_groups, read_keys
from sam_train.cli.run_folders import check_run_name, check_sweep_folders
from sam_train.cli.suggestions import did_you_mean
from sam_train.errors import ConfigError
from sam_train.renames import check_overrides
from sam_train.weights import is_weights_name

if TYPE_CHECKING:
    from sam_train.cli.hydra_command import HydraCommand

_NOT_A_PLAIN_PATH = re.compile(r"[*?\[\]{}]|://|^(none|null)$")
_NO_OVERRIDE = re.compile(r"Could not override '(?P<key>[^']+)'")
_NO_OPTION = re.compile(r"Could not find '(?P<path>[^']+)'")


def readable(override: str) -> str:
    """Return an override in the form that Hydra's grammar reads: a plain value with brackets, blanks or the like is quoted.

    `source=photos/*[0-9].jpg` becomes `source='photos/*[0-9].jpg'`. Values that begin as a list, a dictionary or a
    quotation are not changed. Raises ConfigError if the override cannot be read either way.
    """
    key, equals, value = override.partition("=")
    try:
        _parsed(override)
        return override
    except OverrideParseException as error:
        reason = " ".join(str(error).split())
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    quoted = f"{key}='{escaped}'"
    if equals and value[:1] not in ("[", "{", "'", '"'):
        try:
            _parsed(quoted)
            return quoted
        except OverrideParseException:
            pass
    raise ConfigError(f'{override!r} cannot be read ({reason}): give KEY=VALUE, a text with special signs as "{quoted}"')


def checked_config(command: HydraCommand, overrides: Sequence[str], configs: Path, *, multirun: bool) -> DictConfig:
    """Return the composed config of a command line; of a sweep, that of its first run.

    Raises ConfigError for renamed and misspelled names, with suggestions, for values that do not compose, for a name that leads
    out of the folder of runs, and for a run folder that jobs of a sweep share.
    """
    check_overrides(overrides, _top_level_names(command, configs))
    parsed = [_parsed(override) for override in overrides]
    _check_experiment(command, parsed, configs)
    if not multirun:
        _refuse_sweeps(parsed)
    first = [_first_of_sweep(override) for override in parsed]
    with initialize_config_dir(version_base="1.3", config_dir=str(configs)):
        try:
            cfg = compose(command.config, overrides=first)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explained(error, command, parsed, configs)) from error
    check_run_name(cfg)
    if multirun:
        check_sweep_folders(command, parsed, configs)
    return cfg


def check_required(cfg: DictConfig, required: Mapping[str, str], name: str) -> None:
    """Raise ConfigError if a key that must be given has no value."""
    missing = [key for key in required if OmegaConf.select(cfg, key) in (None, "")]
    if missing:
        wanted = " ".join(f"{key}={required[key]}" for key in missing)
        raise ConfigError(f"{name} needs {wanted}")


def check_inputs(cfg: DictConfig, inputs: Mapping[str, str]) -> None:
    """Raise ConfigError if a key names a local file or folder that does not exist."""
    for key, expected in inputs.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, str) or not value or _NOT_A_PLAIN_PATH.search(value) or is_weights_name(value):
            continue
        if not Path(value).expanduser().exists():
            raise ConfigError(f"{key}={value}: no such file or folder: give {expected}")


def _refuse_sweeps(overrides: Sequence[Override]) -> None:
    """Raise ConfigError for a list of values where one is expected."""
    for override in overrides:
        if override.is_sweep_override():
            key, _, value = str(override.input_line).partition("=")
            quoted = f"\"{key}='{value}'\""
            raise ConfigError(
                f"{override.input_line!r} is a list of values: add -m to run once for each, or quote it as one: {quoted}"
            )


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_overrides([override])[0]


def _first_of_sweep(override: Override) -> str:
    line = override.input_line
    assert line is not None
    if not override.is_sweep_override():
        return line
    return f"{line.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _check_experiment(command: HydraCommand, overrides: Sequence[Override], configs: Path) -> None:
    """Raise ConfigError for an experiment that does not exist or belongs to another command."""
    for override in overrides:
        name = override.value()
        if override.key_or_group != "experiment" or not isinstance(name, str):
            continue
        experiments = read_experiments(configs / "experiment")
        own = [e.name for e in experiments.values() if e.command == command.program and command.has_experiments]
        if name in experiments and name not in own:
            owner = experiments[name].command
            raise ConfigError(f"experiment={name} is an experiment of {owner}: {owner} experiment={name}")
        if name not in experiments:
            hint = did_you_mean(name, own, end=" ")
            listed = f"{command.program} --list-experiments lists them" if own else f"{command.name} has no experiments"
            raise ConfigError(f"experiment={name} does not exist: {hint}{listed}")


def _explained(error: Exception, command: HydraCommand, overrides: Sequence[Override], configs: Path) -> str:
    """Return what is wrong with a command line, with the nearest names."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (match := _NO_OPTION.search(text)):
        group, _, option = match["path"].rpartition("/")
        options = list(error.options or ())
        hint = did_you_mean(option, options, end=" ")
        return f"{group}={option} does not exist: {hint}options of {group}: {', '.join(options) or 'none'}"
    if isinstance(error, ConfigCompositionException) and (match := _NO_OVERRIDE.search(text)):
        key = match["key"]
        hint = did_you_mean(key, _known_names(command, overrides, configs))
        return f"{command.name} has no key or group {key!r}: {hint or f'{command.name} --help lists them'}"
    cause = f": {error.__cause__}" if isinstance(error, ConfigCompositionException) and error.__cause__ else ""
    return " ".join(f"the config does not compose: {text}{cause}".split())


def _top_level_names(command: HydraCommand, configs: Path) -> set[str]:
    """Return the top-level keys and groups of a command; `generator@proposals` counts as `generator` and as `proposals`."""
    path = configs / f"{command.config}.yaml"
    groups = {part for group in read_groups(path) for part in group.name.split("@")}
    return groups | {key.name.partition(".")[0] for key in read_keys(path)}


def _known_names(command: HydraCommand, overrides: Sequence[Override], configs: Path) -> list[str]:
    """Return the groups and all keys of a command, with the groups that the command line chooses, as far as these exist."""
    groups = [group.name for group in read_groups(configs / f"{command.config}.yaml")]
    chosen = [o.input_line for o in overrides if o.key_or_group in (*groups, "experiment") and o.input_line]
    for attempt in (chosen, []):
        try:
            cfg = compose(command.config, overrides=attempt)
        except (HydraException, OmegaConfBaseException):
            continue
        return [*groups, *(["experiment"] if command.has_experiments else []), *_keys(OmegaConf.to_container(cfg), "")]
    return groups


def _keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from _keys(value, name)
