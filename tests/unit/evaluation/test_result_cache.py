"""Measurements are kept whole, found again, and not mixed with another run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import EvaluationImage
from sam_train.evaluation.result_cache import ResultCache

WHAT = {"checkpoint": "a" * 64, "protocol": {"num_clicks": 5, "report": [1, 3]}, "images": "b"}


def subject(number: int, name: str = "key") -> EvaluationImage:
    return EvaluationImage(number=number, name=name, source=None)


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    journal = ResultCache(tmp_path / "journal", WHAT)
    assert journal.load(subject(1)) is None
    measured = {"ious": [[0.1, 1 / 3]], "oracle": [0.7], "name": "ä"}
    journal.save(subject(1), measured)
    again = ResultCache(tmp_path / "journal", WHAT)
    assert again.load(subject(1)) == measured
    assert again.load(subject(2)) is None
    assert again.load(subject(1, "other")) is None
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["000001_key.json", "run.json"]


@pytest.mark.parametrize("key", ["checkpoint", "protocol", "images"])
def test_another_runs_folder_is_refused(tmp_path: Path, key: str) -> None:
    ResultCache(tmp_path, WHAT)
    with pytest.raises(ConfigError, match=f"holds measurements with another {key}: name another journal=FOLDER"):
        ResultCache(tmp_path, {**WHAT, key: "else"})


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    journal = ResultCache(tmp_path, WHAT)
    path = tmp_path / "000001_key.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"000001_key\.json .*: delete it and start again"):
        journal.load(subject(1))


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ResultCache(tmp_path, WHAT).save(subject(1), {"iou": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
