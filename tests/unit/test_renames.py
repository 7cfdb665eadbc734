"""Names of earlier versions: stored configs are upgraded, typed names get an error with the new name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam_train.config import load_stored, resolve_target
from sam_train.errors import ConfigError
from sam_train.renames import KEYS, TARGETS, check_overrides, upgrade_config, with_original_names


def test_stored_keys_targets_and_override_lists_are_upgraded() -> None:
    stored = {
        "losses": {"loser_weight": 0.5, "dice_weight": 1.0},
        "callbacks": {"pictures": {"_target_": "sam_train.training.callbacks.MaskPictures", "num_images": 4}},
        "training": [
            "losses.loser_weight=0.5",
            "optim.lr=1e-3",
            "people_weight",
            "prompts={num_corrections:1,num_empty_rounds: 0}",
        ],
        "engine": ["generator@stage.generator=words", "stage.generator.words=[cat]"],
        3: {"loser_weight": 1},
    }
    assert upgrade_config(stored) == {
        "losses": {"all_candidates_weight": 0.5, "dice_weight": 1.0},
        "callbacks": {"mask_images": {"_target_": "sam_train.training.callbacks.LogMaskImages", "num_images": 4}},
        "training": [
            "losses.all_candidates_weight=0.5",
            "optim.lr=1e-3",
            "people_weight",
            "prompts={num_corrections:1,num_mask_only_rounds: 0}",
        ],
        "engine": ["generator@stage.generator=text_prompts", "stage.generator.text_prompts=[cat]"],
        3: {"loser_weight": 1},
    }


def test_a_stored_override_keeps_its_prefix() -> None:
    stored = {"training": ["++model.details=true", "+losses.loser_weight=1", "~callbacks"]}
    upgraded = ["++model.high_res_features=true", "+losses.all_candidates_weight=1", "~callbacks"]
    assert upgrade_config(stored) == {"training": upgraded}


def test_a_typed_name_is_answered_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"losses\.loser_weight: renamed to losses\.all_candidates_weight"):
        check_overrides(["name=a", "losses.loser_weight=1"])
    with pytest.raises(ConfigError, match="people_weight: renamed to human_mask_weight"):
        check_overrides(["+people_weight=1"])
    with pytest.raises(ConfigError, match="generator@proposals=words: renamed to generator@proposals=text_prompts"):
        check_overrides(["generator@proposals=words"])
    with pytest.raises(ConfigError, match=r"renamed to prompts=\{num_mask_only_rounds: 0\}"):
        check_overrides(["prompts={num_empty_rounds: 0}"])
    check_overrides(["people_weight=1"], known=["losses", "data"])
    check_overrides(["losses.all_candidates_weight=1", "-m", "name=losses.loser_weight"])


def test_a_stored_file_is_upgraded(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("people_weight: 10\ncorpus: {a: 1}\n")
    assert load_stored(file) == {"human_mask_weight": 10, "corpus": {"a": 1}}
    file.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not a YAML config"):
        load_stored(file)


@pytest.mark.parametrize("target", sorted(set(TARGETS.values())))
def test_every_new_target_exists(target: str) -> None:
    assert callable(resolve_target(target))


def test_no_new_name_is_an_old_one() -> None:
    assert not set(KEYS) & set(KEYS.values())
    assert not set(TARGETS) & set(TARGETS.values())
    assert all(old.rpartition(".")[0] == new.rpartition(".")[0] for old, new in KEYS.items())


def test_original_names_are_restored() -> None:
    original = {
        "stage": {"generator": {"_target_": "sam_train.inference.WordMasks", "words": ["cat"], "max_boxes": 3}},
        "list": [1],
    }
    assert with_original_names(upgrade_config(original)) == original
