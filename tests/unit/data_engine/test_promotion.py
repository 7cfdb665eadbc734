"""A model is promoted only if it is better than the promoted one; every decision is stored once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_engine.cycle_folder import CycleFolder
from data_engine.cycle_folder.promotion import PROMOTION_MEASURES, has_decision, promote_if_better, promoted_checkpoint, roll_back
from sam_train.errors import CheckpointError, ConfigError
from sam_train.evaluation.clicks import ClickResult


def decide(run_dir: Path, step: str, score: float) -> bool:
    candidate = run_dir / step / "model.pt"
    candidate.parent.mkdir(exist_ok=True)
    candidate.write_text(f"weights of {step}")
    return promote_if_better(
        CycleFolder(run_dir), step=step, candidate=candidate, evaluation={"miou": score, "other": 1.0}, measure="miou"
    )


def test_measures_are_those_of_sam_evaluate() -> None:
    summary = ClickResult(ious=np.ones((2, 5)), oracle=np.ones(2), num_images=1).means()
    assert set(PROMOTION_MEASURES) == {name for name, value in summary.items() if isinstance(value, float)}


def test_no_model_is_promoted_at_first(tmp_path: Path) -> None:
    assert promoted_checkpoint(CycleFolder(tmp_path)) is None
    assert not has_decision(CycleFolder(tmp_path), "1_a")


def test_promotes_only_a_better_model(tmp_path: Path) -> None:
    scores = [("1_a", 0.0), ("2_b", 0.5), ("3_c", 0.4), ("4_d", 0.5), ("5_e", 0.6)]
    assert [decide(tmp_path, step, score) for step, score in scores] == [True, True, False, False, True]
    assert promoted_checkpoint(CycleFolder(tmp_path)) == tmp_path / "5_e" / "model.pt"


def test_worse_model_leaves_the_promoted_one(tmp_path: Path) -> None:
    decide(tmp_path, "1_a", 0.5)
    decide(tmp_path, "2_b", 0.4)
    assert promoted_checkpoint(CycleFolder(tmp_path)) == tmp_path / "1_a" / "model.pt"
    assert has_decision(CycleFolder(tmp_path), "2_b")


def test_history_stores_every_decision(tmp_path: Path) -> None:
    decide(tmp_path, "1_a", 0.5)
    decide(tmp_path, "2_b", 0.4)
    document = json.loads((tmp_path / "promoted.json").read_bytes())
    hashes = [hashlib.sha256(f"weights of {step}".encode()).hexdigest() for step in ("1_a", "2_b")]
    assert (document["checkpoint"], document["sha256"]) == ("1_a/model.pt", hashes[0])
    assert document["history"] == [
        {
            "step": step,
            "checkpoint": f"{step}/model.pt",
            "sha256": sha256,
            "promoted": better,
            "evaluation": {"miou": score, "other": 1},
        }
        for step, sha256, better, score in (("1_a", hashes[0], True, 0.5), ("2_b", hashes[1], False, 0.4))
    ]


def test_second_decision_on_a_step_changes_nothing(tmp_path: Path) -> None:
    decide(tmp_path, "1_a", 0.5)
    decide(tmp_path, "2_b", 0.4)
    before = (tmp_path / "promoted.json").read_bytes()
    assert [decide(tmp_path, "1_a", 0.1), decide(tmp_path, "2_b", 0.9)] == [True, False]
    assert (tmp_path / "promoted.json").read_bytes() == before


def test_run_folder_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    decide(tmp_path / "old", "1_a", 0.5)
    (tmp_path / "old").rename(tmp_path / "new")
    checkpoint = promoted_checkpoint(CycleFolder(tmp_path / "new"))
    assert checkpoint is not None
    assert checkpoint.is_file()


def test_rejects_a_missing_measure_and_a_missing_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    model.write_text("x")
    with pytest.raises(ConfigError, match=r"'miou', the evaluation has \['other'\]"):
        promote_if_better(CycleFolder(tmp_path), step="1", candidate=model, evaluation={"other": 1.0}, measure="miou")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        promote_if_better(CycleFolder(tmp_path), step="1", candidate=tmp_path / "no.pt", evaluation={"miou": 1.0}, measure="miou")
    assert not (tmp_path / "promoted.json").exists()


def test_candidates_after_a_roll_back_are_compared_with_the_earlier_model(tmp_path: Path) -> None:
    for step, score in [("1_a", 0.5), ("2_b", 0.6)]:
        decide(tmp_path, step, score)
    assert roll_back(CycleFolder(tmp_path), step="1_a", reason="it leaks") == "2_b"
    assert promoted_checkpoint(CycleFolder(tmp_path)) == tmp_path / "1_a" / "model.pt"
    entry = json.loads((tmp_path / "promoted.json").read_bytes())["history"][-1]
    assert (entry["step"], entry["promoted"], entry["rolled_back_from"], entry["because"]) == ("1_a", True, "2_b", "it leaks")
    assert decide(tmp_path, "3_c", 0.55), "better than the promoted model, though not than the best one"
    assert roll_back(CycleFolder(tmp_path), step="2_b") == "3_c", "forward again"


def test_rejects_a_roll_back_to_an_unknown_promoted_or_replaced_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has evaluated no model of '1_a': expected one of none yet"):
        roll_back(CycleFolder(tmp_path), step="1_a")
    decide(tmp_path, "1_a", 0.5)
    with pytest.raises(ConfigError, match="the model of 1_a is promoted already"):
        roll_back(CycleFolder(tmp_path), step="1_a")
    decide(tmp_path, "2_b", 0.6)
    (tmp_path / "1_a" / "model.pt").write_text("another")
    before = (tmp_path / "promoted.json").read_bytes()
    with pytest.raises(ConfigError, match="is not the model that was evaluated: its SHA-256 is"):
        roll_back(CycleFolder(tmp_path), step="1_a")
    assert (tmp_path / "promoted.json").read_bytes() == before


def test_promotes_only_for_a_gain_above_min_gain(tmp_path: Path) -> None:
    candidate = tmp_path / "model.pt"
    for step, score, better in [("1_a", 0.5, True), ("2_b", 0.51, False), ("3_c", 0.53, True)]:
        candidate.write_text(step)
        asked = {"step": step, "candidate": candidate, "evaluation": {"miou": score}, "measure": "miou"}
        assert promote_if_better(CycleFolder(tmp_path), **asked, min_gain=0.02) is better
