"""Configuration: the folder of the configs, and the one function that turns a `_target_` in a config into an object.

The constructor's signature is the schema, YAML holds the values. A `_target_` is an import, so it is treated as one: `build`
resolves it, checks that the object is *defined* in an allowed package (an attribute path such as `sam_train.config.Path.home`
resolves, but is defined elsewhere), and only then calls it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from sam_train.errors import ConfigError, SamTrainError
from sam_train.files import atomic_write_bytes
from sam_train.renames import upgrade_config

ALLOWED_PACKAGES = ("sam_train", "data_engine", "pytorch_lightning.callbacks")


def config_dir() -> str:
    """Return the absolute path of the Hydra configs: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside, beside = here / "configs", here.parent / "configs"
    return str(inside if inside.is_dir() else beside)


def resolve_target(target: str, allowed: Sequence[str] = ALLOWED_PACKAGES) -> Any:
    """Return the class or function that `target` names. Raises ConfigError unless an allowed package defines it."""
    if not _is_in(target, allowed):  # before the import, which already runs what it finds
        raise ConfigError(f"_target_ {target!r} is outside {', '.join(allowed)}: nothing else may be built from a config")
    try:
        found = get_object(target)
    except Exception as error:  # Hydra wraps whatever the import raised
        raise ConfigError(f"_target_ {target!r} cannot be imported: {error}") from error
    home = getattr(found, "__module__", "") or ""
    if not callable(found) or not _is_in(home, allowed):
        where = home or "no module"
        raise ConfigError(f"_target_ {target!r} is defined in {where!r}; only {', '.join(allowed)} may be built from a config")
    if home == __name__:
        raise ConfigError(f"_target_ {target!r} would let a config choose what a config may build")
    return found


def _is_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def targets(node: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return every `_target_` of a plain container with the keys beside it, depth first."""
    found: list[tuple[str, dict[str, Any]]] = []
    if isinstance(node, Mapping):
        if "_target_" in node:
            found.append((str(node["_target_"]), {str(k): v for k, v in node.items() if not str(k).startswith("_")}))
        for value in node.values():
            found += targets(value)
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        for value in node:
            found += targets(value)
    return found


def build(cfg: DictConfig | ListConfig | Mapping[str, Any], allowed: Sequence[str] = ALLOWED_PACKAGES, **kwargs: Any) -> Any:
    """Build the object that `cfg._target_` names, with `kwargs` added to its arguments. Nested targets are built too.

    Raises ConfigError if a target is not allowed or its constructor rejects the values. A SamTrainError of the constructor is
    raised unchanged.
    """
    plain = to_plain(cfg)
    if "_target_" not in plain:
        raise ConfigError(f"nothing to build: no _target_ among the keys {sorted(plain)}")
    functions = [(target, resolve_target(target, allowed), values) for target, values in targets(plain)]
    _refuse_interpolations(plain)
    for target, function, values in functions:
        _check_value_types(function, target, values)
    try:
        return instantiate(OmegaConf.create(plain), **kwargs, _convert_="all")
    except MissingMandatoryValue as error:
        raise ConfigError(f"{plain['_target_']} cannot be built: {error.full_key} is ??? and must be given a value") from error
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, SamTrainError):
            raise cause from None
        raise ConfigError(f"{plain['_target_']} cannot be built: {type(cause).__name__}: {cause}") from error


_TYPES = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def _check_value_types(function: Any, target: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value of another type than the constructor's annotation, if that is made of plain types alone."""
    for name, parameter in inspect.signature(function).parameters.items():
        parts = [part.strip() for part in str(parameter.annotation).split("|")]
        value = values.get(name, "???")
        if not set(parts) <= set(_TYPES) or value == "???" or isinstance(value, (Mapping, list)):
            continue
        if not any(isinstance(value, _TYPES[part]) and (part == "bool" or not isinstance(value, bool)) for part in parts):
            expected = " or ".join("null" if part == "None" else part for part in parts)
            raise ConfigError(f"{name} is {value!r}: expected {expected} ({target})")


def _refuse_interpolations(node: Any) -> None:
    """Raise ConfigError for an unresolved `${...}`: resolved later, it could become a `_target_` that was not checked."""
    if isinstance(node, str) and "${" in node:
        raise ConfigError(f"{node!r} is still an interpolation after the config was resolved")
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            _refuse_interpolations(value)


def to_plain(cfg: DictConfig | ListConfig | Mapping[str, Any]) -> Any:
    """Return the resolved config as dicts and lists, ready for JSON or a checkpoint.

    Raises ConfigError if an interpolation does not resolve or a value cannot be stored as YAML.
    """
    try:
        return OmegaConf.to_container(cfg if OmegaConf.is_config(cfg) else OmegaConf.create(dict(cfg)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config does not resolve: {error}") from error


def config_hash(cfg: DictConfig | Mapping[str, Any]) -> str:
    """Return the first 12 hex digits of the SHA-256 of the resolved config, with sorted keys."""
    return hashlib.sha256(json.dumps(to_plain(cfg), sort_keys=True).encode()).hexdigest()[:12]


def load_stored(path: Path) -> Any:
    """Return the plain config in a YAML file that a run stored, in the names of today (`renames.upgrade_config`).

    Raises ConfigError when the file is not YAML or an interpolation in it does not resolve.
    """
    try:
        stored = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML config: {error}") from error
    return upgrade_config(to_plain(stored))


def changed_keys(cfg: DictConfig, saved: Path, keys: Sequence[str]) -> list[str]:
    """Return those of the top-level `keys` whose values differ from the config that `save_resolved` wrote."""
    before, now = load_stored(saved), to_plain(OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))  # both have been YAML
    return [key for key in keys if before.get(key) != now.get(key)]


@dataclass(frozen=True, slots=True)
class ChangedValue:
    """A config key whose value differs from the stored one. Its text is `key (was BEFORE, now NOW)`."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} (was {_shown(self.before)}, now {_shown(self.now)})"


def changed_values(cfg: DictConfig, saved: Path, keys: Sequence[str], free: Sequence[str] = ()) -> list[ChangedValue]:
    """Return the values that differ from the config that `save_resolved` wrote.

    keys: dotted keys and groups to compare. free: dotted keys inside them that are not compared.
    """
    before, now = load_stored(saved), to_plain(OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))  # both have been YAML
    changes: list[ChangedValue] = []
    for key in keys:
        _compare(key, _select(before, key), _select(now, key), free, changes)
    return changes


def _compare(key: str, before: Any, now: Any, free: Sequence[str], changes: list[ChangedValue]) -> None:
    if key in free or before == now:
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in (*before, *(name for name in now if name not in before)):
            _compare(f"{key}.{name}", before.get(name), now.get(name), free, changes)
    else:
        changes.append(ChangedValue(key, before, now))


def _select(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def save_resolved(cfg: DictConfig, path: Path) -> None:
    """Write the resolved config into a run folder, so that the run can be read without Hydra."""
    atomic_write_bytes(path, OmegaConf.to_yaml(cfg, resolve=True).encode())
