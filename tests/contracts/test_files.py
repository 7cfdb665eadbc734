"""What holds of every file: no machine in it, no module that nobody can hold in the head, no drawer for odds and ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PACKAGES = ("sam_train", "data_engine")
MAX_LINES = 300
DRAWERS = {"utils", "util", "helpers", "misc", "common", "core"}
# Written in pieces, so that this file does not name what it forbids.
MACHINE = tuple("/" + name + "/" for name in ("work", "opt", "root"))
REGISTRIES = tuple(".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted", "org"), ("pypi", "python", "org")))


def listed(root: Path, *options: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", *options], cwd=root, capture_output=True, text=True, check=True).stdout  # noqa: S607
    return [root / name for name in names.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="module")
def files(repo_root: Path) -> list[Path]:
    """Every file that is in the repository or about to be."""
    found = listed(repo_root, "--cached", "--others", "--exclude-standard")
    assert repo_root / "pyproject.toml" in found
    return found


def modules(root: Path) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def test_no_file_names_a_machine_or_a_registry(files: list[Path], repo_root: Path) -> None:
    found = []
    for path in files:
        data = path.read_bytes()
        found += [f"{path.relative_to(repo_root)}: {word}" for word in MACHINE + REGISTRIES if word.encode() in data]
    assert found == []


def test_nothing_that_is_ignored_is_tracked(repo_root: Path) -> None:
    assert listed(repo_root, "--cached", "--ignored", "--exclude-standard") == []


def test_every_module_can_be_read_in_one_go(repo_root: Path) -> None:
    lengths = {str(path.relative_to(repo_root)): len(path.read_text().splitlines()) for path in modules(repo_root)}
    assert len(lengths) > 10
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_module_is_a_drawer(repo_root: Path) -> None:
    parts = {path: {*path.relative_to(repo_root).with_suffix("").parts} for path in modules(repo_root)}
    assert [str(path) for path, names in parts.items() if names & DRAWERS] == []


def test_every_version_of_the_lock_is_pinned(repo_root: Path) -> None:
    lines = [line for line in (repo_root / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if line.count("==") != 1 or "+" in line or " " in line] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())
