"""Measurements are stored atomically, loaded again, and not mixed with those of other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import EvaluationImage
from sam_train.evaluation.result_cache import ResultCache

SETTINGS = {"checkpoint": "a" * 64, "protocol": {"num_clicks": 5, "report": [1, 3]}, "images": "b"}


def image_entry(number: int, name: str = "key") -> EvaluationImage:
    return EvaluationImage(number=number, name=name, source=None)


def test_loads_what_was_saved(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "cache", SETTINGS)
    assert cache.load(image_entry(1)) is None
    measurement = {"ious": [[0.1, 1 / 3]], "oracle": [0.7], "name": "ä"}
    cache.save(image_entry(1), measurement)
    reopened = ResultCache(tmp_path / "cache", SETTINGS)
    assert reopened.load(image_entry(1)) == measurement
    assert reopened.load(image_entry(2)) is None
    assert reopened.load(image_entry(1, "other")) is None
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["000001_key.json", "run.json"]


@pytest.mark.parametrize("key", ["checkpoint", "protocol", "images"])
def test_rejects_a_folder_with_other_settings(tmp_path: Path, key: str) -> None:
    ResultCache(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match=f"holds measurements with another {key}: name another result_cache=FOLDER"):
        ResultCache(tmp_path, {**SETTINGS, key: "else"})


@pytest.mark.parametrize(
    ("stored", "current"),
    [
        (
            {"wordings": {"a": {"words": {"cat": "kitten"}, "backwards": True}}, "pictures": None},
            {"paraphrases": {"a": {"synonyms": {"cat": "kitten"}, "reverse": True}}, "figures": None},
        ),
        (
            {"many_masks": 9, "few_masks": 5, "datasets": {"a": {"title": "A", "get": "somewhere", "import": None, "masks": 3}}},
            {
                "subsample_above_masks": 9,
                "subsample_to_masks": 5,
                "datasets": {"a": {"title": "B", "download": "elsewhere", "import": "yolo", "masks": 3}},
            },
        ),
        (
            {"_target_": "sam_train.evaluation.noc.ClicksNeededProtocol"},
            {"_target_": "sam_train.evaluation.clicks_needed.ClicksNeededProtocol"},
        ),
    ],
)
def test_resumes_a_folder_of_an_earlier_version(tmp_path: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**SETTINGS, "protocol": stored}))
    ResultCache(tmp_path, {**SETTINGS, "protocol": current})
    with pytest.raises(ConfigError, match="another protocol"):
        ResultCache(tmp_path, {**SETTINGS, "protocol": {**current, "seed": 1}})


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_rejects_a_corrupt_file(tmp_path: Path, content: str) -> None:
    cache = ResultCache(tmp_path, SETTINGS)
    (tmp_path / "000001_key.json").write_text(content)
    with pytest.raises(ConfigError, match=r"000001_key\.json .*: delete it and run the evaluation again"):
        cache.load(image_entry(1))


def test_rejects_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ResultCache(tmp_path, SETTINGS).save(image_entry(1), {"iou": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
