"""The constructor's signature is the schema: every `_target_` resolves, every key beside it is a parameter of it, and
every experiment composes under the command in its head. Nothing is built here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sam_train.config import ALLOWED_PACKAGES, config_dir, resolve_target, targets, to_plain
from sam_train.errors import ConfigError

CONFIGS = Path(config_dir())
ROOTS = {
    "sam-train": "train",
    "sam-evaluate": "evaluate",
    "sam-export": "export",
    "sam-engine": "engine",
    "sam-annotate": "annotate",
    "sam-cycle": "cycle",
    "sam-train plan": "plan",
}
# Groups that Python hands to a constructor by itself, so that no `_target_` says whose arguments they are.
WIRED = {("train", "trainer"): "pytorch_lightning.Trainer", ("train", "training"): "sam_train.training.SamModule"}
TRAINER_SIDE = ("sam_train.training", "sam_train.data", "sam_train.losses", "sam_train.optim", "sam_train.evaluation")
HEADER = re.compile(r"# (?P<command>[a-z-]+) experiment=(?P<name>[\w/-]+)(?P<overrides>( \S+=\S+)*)")


def names(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS / folder)) for path in (CONFIGS / folder).glob(pattern))


FILES = names(".", "**/*.yaml")
EXPERIMENTS = [name.removesuffix(".yaml") for name in names("experiment", "**/*.yaml")]
READY_ROOTS = [root for root in ROOTS.values() if f"{root}.yaml" in FILES]


def problems_of(target: str, keys: dict[str, Any], allowed: Sequence[str] = ALLOWED_PACKAGES) -> list[str]:
    """What keeps `target` from being called with `keys`, as far as names can tell."""
    try:
        found = resolve_target(target, allowed)
    except ConfigError as error:
        return [str(error)]
    parameters = inspect.signature(found).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and not target.startswith(("sam_train.", "data_engine.")):
        return []  # a foreign constructor may pass keys on; ours name every one
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [f"{target} has no parameter {key!r} (it has {', '.join(sorted(known))})" for key in keys if key not in known]


def problems(node: Any) -> list[str]:
    return [problem for target, keys in targets(node) for problem in problems_of(target, keys)]


def composed(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return compose(root, overrides=list(overrides))


def check_composed(root: str, config: DictConfig) -> None:
    """A composed root with every interpolation resolved: what the command would be handed."""
    plain = to_plain(config)
    found = problems(plain)
    for (owner, group), target in WIRED.items():
        if owner == root:
            found += problems_of(target, plain[group], allowed=("sam_train", "pytorch_lightning"))
    assert found == []
    named = [target for target, _ in targets(plain)]
    if root in ("train", "plan", "evaluate"):
        assert [target for target in named if target.startswith("data_engine.")] == [], "the trainer never sees the engine"
    else:
        assert [target for target in named if target.startswith(TRAINER_SIDE)] == [], "the engine never imports the trainer"


def header(path: Path) -> re.Match[str]:
    """The command that opens an experiment: its first line but for Hydra's own `# @package`."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    match = HEADER.match(lines[0]) if lines else None
    assert match, f"{path.name} must open with '# <command> experiment={path.stem}', not with {lines[:1]}"
    return match


@pytest.mark.parametrize("name", FILES)
def test_every_target_of_a_file_takes_the_keys_beside_it(name: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / name), resolve=False)
    node.pop("defaults", None)  # Hydra's, and gone before anything is built
    assert problems(node) == []


@pytest.mark.parametrize("root", READY_ROOTS)
def test_every_root_composes(root: str) -> None:
    check_composed(root, composed(root))


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name and not name.startswith("experiment/")])
def test_every_file_of_a_group_composes_where_it_belongs(name: str) -> None:
    """A file that no root can take is a file that nobody can use."""
    group, _, option = name.removesuffix(".yaml").rpartition("/")
    place = place_of(group)
    assert place, f"no root config has the group {group!r}"
    root, overrides = place
    check_composed(root, composed(root, *overrides[:-1], f"{overrides[-1]}={option}"))


@cache
def place_of(group: str) -> tuple[str, tuple[str, ...]] | None:
    """A root and the overrides that lead to `group`, which may be nested in one option of another group."""
    for root in READY_ROOTS:
        others = [
            name.removesuffix(".yaml").rpartition("/") for name in FILES if "/" in name and not name.startswith("experiment/")
        ]
        for overrides in [(), *((f"{folder}={option}",) for folder, _, option in others if folder in choices(root))]:
            for place in choices(root, *overrides):
                if place.partition("@")[0] == group:
                    return root, (*overrides, place)
    return None


@cache
def choices(root: str, *overrides: str) -> tuple[str, ...]:
    """The groups, as `group` or `group@where`, that Hydra chose from for a root."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return tuple(compose(root, overrides=list(overrides), return_hydra_config=True).hydra.runtime.choices)


def test_there_is_an_experiment() -> None:
    assert EXPERIMENTS or "train.yaml" not in FILES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_under_its_command(name: str) -> None:
    head = header(CONFIGS / "experiment" / f"{name}.yaml")
    assert head["name"] == name
    assert head["command"] in ROOTS, f"{head['command']} is none of {', '.join(ROOTS)}"
    config = composed(ROOTS[head["command"]], f"experiment={name}", *head["overrides"].split())
    assert OmegaConf.missing_keys(config) == set(), "the command in the head does not give every value"
    check_composed(ROOTS[head["command"]], config)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "sam_train.geometry.Resize", "heigth": 3}, "no parameter 'heigth' (it has height, size, width)"),
        ({"a": [{"_target_": "sam_train.geometry.Risize"}]}, "cannot be imported"),
        ({"a": {"_target_": "os.system", "command": "true"}}, "is outside"),
    ],
)
def test_the_check_finds_what_it_looks_for(node: Any, message: str) -> None:
    (problem,) = problems(node)
    assert message in problem
