"""The YAML files of the configs as text: keys with their comments, groups with their options, experiments with their headers.

The files are read line by line because a YAML parser drops comments. They are this project's own, and tests hold them to the
form that is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"^(?P<indent> *)(?P<item>- )?(?P<key>[\w@/.]+|\"[^\"]*\"):(?: +(?P<value>[^#\s].*?))?(?:\s+# (?P<comment>.*))?$"
)
_EXPERIMENT = re.compile(r"^# (?P<command>sam-[a-z]+)( [a-z]+)? experiment=(?P<name>\w+)")
_FIELD = re.compile(r"^# (?P<field>Title|Cost|Expect): (?P<text>.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of a config file."""

    name: str
    """Dotted name within the file."""
    value: str
    """Default as it is written in the file; empty for a key that holds others."""
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A config group in the defaults list of a command."""

    name: str
    """Name as it is typed, such as `model` or `generator@proposals`."""
    default: str
    """The option that is taken where none is given, or "null"."""
    comment: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment file: overrides of one command for one purpose."""

    name: str
    command: str
    """The console command it belongs to, such as `sam-train`."""
    title: str = ""
    cost: str = ""
    expect: str = ""


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a config file in their order, without Hydra's own and the defaults list."""
    keys: list[Key] = []
    parents: list[tuple[int, str]] = []
    skipped_at: int | None = None
    comments: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        stripped = line.lstrip()
        if stripped.startswith("# "):
            comments.append(stripped[2:])
            continue
        match = _LINE.match(line)
        if match is None or match["item"]:
            comments = []
            continue
        indent = len(match["indent"])
        if skipped_at is not None and indent > skipped_at:
            continue
        skipped_at = indent if indent == 0 and match["key"] in ("defaults", "hydra") else None
        parents = [(depth, name) for depth, name in parents if depth < indent]
        if skipped_at is None and match["key"] != "_target_":
            name = ".".join([*(name for _, name in parents), match["key"].strip('"')])
            keys.append(Key(name=name, value=match["value"] or "", comment=match["comment"] or " ".join(comments)))
        parents.append((indent, match["key"]))
        comments = []
    return keys


def read_groups(path: Path) -> list[Group]:
    """Return the config groups in a file's defaults list, those of files that it includes first. Experiments are not listed."""
    groups: dict[str, Group] = {}
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith((" ", "-", "#")):
            inside = line.startswith("defaults:")
        if not inside:
            continue
        if included := re.match(r"^ *- (?P<name>\w+)\s*$", line):
            if included["name"] != "_self_":
                groups |= {group.name: group for group in read_groups(path.parent / f"{included['name']}.yaml")}
            continue
        match = _LINE.match(line)
        if match is None or not match["item"] or match["key"].startswith("override"):
            continue
        name = match["key"]
        folder = (path.parent.parent if name.startswith("/") else path.parent) / name.strip("/").partition("@")[0]
        options = tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        groups[name] = Group(name=name, default=match["value"] or "null", comment=match["comment"] or "", options=options)
    groups.pop("experiment", None)
    return list(groups.values())


def header_of(path: Path) -> str:
    """Return the comment lines at the top of a config file as one text."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].strip())
    return "\n".join(lines)


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """Return all experiments by name, each with the command whose line stands in its header."""
    experiments: dict[str, Experiment] = {}
    for path in sorted(folder.glob("*.yaml")):
        command, fields, last = "", {}, ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if match := _EXPERIMENT.match(line):
                command = command or match["command"]
                last = ""
            elif match := _FIELD.match(line):
                last = match["field"].lower()
                fields[last] = match["text"].strip()
            elif last and line.startswith("#   "):
                fields[last] += " " + line[1:].strip()
            else:
                last = ""
        experiments[path.stem] = Experiment(name=path.stem, command=command, **fields)
    return experiments
