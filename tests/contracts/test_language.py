"""Plain technical English: docstrings begin with a full statement, and phrases of a private dialect do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FRAGMENT_STARTS = frozenset(
    (
        "What",
        "Of",
        "Those",
        "Whether",
        "How",
        "Where",
        "Who",
        "Which",
        "That",
        "As",
        "At",
        "To",
        "From",
        "With",
        "In",
        "By",
        "Its",
    )
)
# Each stands for one idea that has a standard term: resume, NaN or inf, held-out, skip, truncated, atomic, EMA, image, ...
PHRASES = (
    r"(is|are) no (number|picture|checkpoint|json|yaml|text|tar|tensors|numbers)\b",
    r"\b(goes|gone|went) on at\b",
    r"\bkept out\b",
    r"\bpassed over\b",
    r"\btorn\b",
    r"\bcannot be had\b",
    r"\bdealt out\b",
    r"\ba (row|line|file) a (mask|box|image|picture|slice|shard)\b",
    r"\btaken for dead\b",
    r"\bas chance made\b",
    r"\brunning mean of (the )?weights\b",
    r"\bhangs together\b",
    r"\bsearched to the bottom\b",
    r"\bmends?\b|\bmended\b",
    r"\basked to leave\b",
    r"\b(goes|go) to work\b",
    r"\btakes the brush\b|\bpatience ends\b",
    r"\bthe lesser (one )?goes\b",
    r"\bof length one\b",
    r"\bwhole or not there\b",
    r"\bstrangers?\b",
    r"\bmourn",
    r"\bpictures?\b",
)
ALLOWED = {
    "sam_train/renames.py",  # old names
    "tests/contracts/test_language.py",
    "tests/unit/test_renames.py",
    "tests/unit/evaluation/test_result_cache.py",  # old names
    "CHANGELOG.md",
}
SUFFIXES = {".py", ".yaml", ".md", ".js", ".html", ".j2", ".css", ".sbatch", ".toml"}
FOLDERS = ("sam_train", "data_engine", "configs", "tests", "docs", "examples", "slurm")


def texts(root: Path) -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.suffix in SUFFIXES]
    found = [path for path in found if "ort" not in path.parts and str(path.relative_to(root)) not in ALLOWED]
    return [*found, root / "README.md", root / "CONTRIBUTING.md", root / "pyproject.toml"]


def docstrings(tree: ast.Module) -> list[tuple[int, str]]:
    """Return the line and text of every docstring, of attributes too."""
    found = []
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                found.append((statement.lineno, statement.value.value.strip()))
    return found


@pytest.mark.parametrize("package", ["sam_train", "data_engine", "examples"])
def test_no_docstring_begins_as_a_fragment(repo_root: Path, package: str) -> None:
    fragments = [
        f"{path.relative_to(repo_root)}:{line}: {text.splitlines()[0]}"
        for path in sorted((repo_root / package).rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text()))
        if text and re.split(r"\W", text, maxsplit=1)[0] in FRAGMENT_STARTS
    ]
    assert fragments == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_phrase_of_the_dialect(repo_root: Path, phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        f"{path.relative_to(repo_root)}:{number}: {line.strip()[:120]}"
        for path in texts(repo_root)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


def test_a_fragment_and_a_phrase_are_found() -> None:
    tree = ast.parse('def f():\n    """What it does."""\nx = 1\n"""Of a mask."""\n')
    assert [text for _, text in docstrings(tree)] == ["Of a mask.", "What it does."]
    assert re.search(PHRASES[2], "pictures kept out of training")
