"""Checks of the name and the folder of a run: a name stays inside runs/, and the jobs of a sweep do not share a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sam_train.errors import ConfigError

if TYPE_CHECKING:
    from sam_train.cli.hydra_command import HydraCommand


def check_run_name(cfg: DictConfig) -> None:
    """Raise ConfigError if `name` is empty, absolute, or leads out of the folder of runs. Configs without a name pass."""
    name = cfg.get("name")
    if "name" not in cfg or "run_dir" not in cfg:
        return
    parts = PurePosixPath(str(name)).parts
    if not isinstance(name, (str, int, float)) or not parts or parts[0] == "/" or ".." in parts or not str(name).strip():
        raise ConfigError(f"name={name!r} is not the name of a run folder: give one without .. and leading /, such as name=mine")


def check_sweep_folders(command: HydraCommand, overrides: Sequence[Override], configs: Path) -> None:
    """Raise ConfigError if two jobs of a sweep would write to the same run folder.

    Each list of values is varied alone: jobs that differ in one key must differ in their run_dir.
    """
    sweeps = [i for i, override in enumerate(overrides) if override.is_sweep_override()]
    lines = [_values(override) if override.is_sweep_override() else [str(override.input_line)] for override in overrides]
    first = [values[0] for values in lines]
    with initialize_config_dir(version_base="1.3", config_dir=str(configs)):
        for i in sweeps:
            seen: dict[str, str] = {}
            for value in lines[i]:
                cfg = compose(command.config, overrides=[*first[:i], value, *first[i + 1 :]])
                if (run_dir := OmegaConf.select(cfg, "run_dir")) is None:
                    return
                if other := seen.get(run_dir):
                    key = value.partition("=")[0]
                    example = "name='mine-${" + key + "}'" if "." in key or key in cfg else "another name=... for each"
                    raise ConfigError(f"the jobs {other} and {value} of this sweep would both write to {run_dir}: give {example}")
                seen[run_dir] = value


def _values(override: Override) -> list[str]:
    key = str(override.input_line).partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
