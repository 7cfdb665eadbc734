"""A module imports only from the floors below: the contracts stand in pyproject.toml, import-linter checks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    return subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, check=False)


def test_contracts_are_kept(repo_root: Path) -> None:
    result = lint(repo_root)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Contracts: 4 kept, 0 broken." in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("sam_train/errors.py", "import sam_train.masks", "Floors of sam_train"),
        ("sam_train/newcomer.py", "", "Floors of sam_train"),
        ("data_engine/newcomer.py", "", "Floors of data_engine"),
        ("sam_train/masks.py", "import data_engine", "The trainer never sees the engine"),
        ("data_engine/stages/thief.py", "import sam_train.losses.sam_loss", "The engine enters sam_train by its public doors"),
    ],
)
def test_contracts_can_break(repo_root: Path, tmp_path: Path, module: str, line: str, broken: str) -> None:
    """A linter that reads the wrong file keeps every contract."""
    shutil.copy(repo_root / "pyproject.toml", tmp_path)
    for package in ("sam_train", "data_engine"):
        shutil.copytree(repo_root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "configs"))
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.parent.joinpath("__init__.py").touch()
    with path.open("a") as stream:
        stream.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{broken} BROKEN" in result.stdout
