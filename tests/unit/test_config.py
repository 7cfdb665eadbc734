from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sam_train import config
from sam_train.config import build, config_hash, resolve_target, save_resolved, targets, to_plain
from sam_train.errors import ConfigError
from sam_train.geometry import Resize

RESIZE = {"_target_": "sam_train.geometry.Resize", "height": 3, "width": 4, "size": 8}


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_build_calls_the_target_with_its_keys(wrap: Any) -> None:
    assert build(wrap(RESIZE)) == Resize(3, 4, 8)


def test_arguments_of_the_caller_are_added_and_win() -> None:
    assert build(RESIZE, size=16) == Resize(3, 4, 16)


def test_objects_pass_through_as_they_are() -> None:
    """Wiring hands modules and lists of them to a constructor: they must arrive, not copies."""
    resize = Resize(1, 2, 3)
    found = build({"_target_": "pytorch_lightning.callbacks.LambdaCallback"}, setup=resize.points_to_model)
    assert found.setup.__self__ is resize


def test_interpolations_are_resolved_first() -> None:
    assert build(RESIZE | {"size": "${width}"}) == Resize(3, 4, 4)
    root = OmegaConf.create({"side": 9, "resize": RESIZE | {"size": "${side}"}})
    assert build(root.resize) == Resize(3, 4, 9)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "eval",
        "",
        "sam_train",
        "sam_train.",
        "sam_trainer.thing",
        "sam_train.config.os.system",
        "sam_train.shards.writer.os.system",
        "sam_train.config.Path.home",
        "sam_train.config.Path",
        "sam_train.config.instantiate",
        "sam_train.config.hashlib.sha256",
        "sam_train.config.__builtins__.eval",
        "sam_train.geometry.Resize.__init__.__globals__.clear",
        "sam_train.config.build",
        "sam_train.config.resolve_target",
        "sam_train.geometry",
        "sam_train.geometry.Resise",
        "sam_train.no_such_module.Thing",
        "data_engine.no_such_module.Thing",
        "sam_train..geometry.Resize",
        "pytorch_lightning.Trainer",
        "sam_train.train.Trainer",
    ],
)
def test_what_a_config_may_not_name(target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target(target)
    assert repr(target) in str(caught.value)
    with pytest.raises(ConfigError):
        build({"_target_": target})
    with pytest.raises(ConfigError):
        build(RESIZE | {"size": {"_target_": target}})
    with pytest.raises(ConfigError):
        build(RESIZE | {"size": [1, {"deeper": {"_target_": target}}]})


def test_a_foreign_module_is_not_even_imported() -> None:
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigError, match="is outside"):
        resolve_target("antigravity.geohash")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "hidden",
    [
        "${oc.create:{_target_: os.getcwd}}",  # a target that is only there once the value is resolved
        r"\${oc.create:{_target_: os.getcwd}}",  # and one that is there once it is resolved again
    ],
)
@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_targets_that_hide_in_interpolations_are_found(hidden: str, wrap: Any) -> None:
    with pytest.raises(ConfigError, match=r"is outside|still an interpolation"):
        build(wrap(RESIZE | {"size": hidden}))
    with pytest.raises(ConfigError, match=r"is outside|still an interpolation"):
        build(wrap(RESIZE | {"size": [{"a": hidden}]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siz": 1}, "unexpected keyword argument 'siz'"),
        ({"size": 0}, "sides must be positive"),
        ({"size": "???"}, "size is \\?\\?\\? and must be given"),
        ({"size": "${nothing}"}, "'nothing' not found"),
    ],
)
def test_values_that_do_not_fit_say_what_and_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RESIZE | change)


def test_a_key_too_few_and_no_target_at_all() -> None:
    with pytest.raises(ConfigError, match=r"sam_train\.geometry\.Resize cannot be built: TypeError.*'size'"):
        build({key: value for key, value in RESIZE.items() if key != "size"})
    with pytest.raises(ConfigError, match=r"no _target_ among the keys \['a', 'b'\]"):
        build({"b": 1, "a": 2})


def test_the_list_of_packages_can_be_narrowed() -> None:
    assert resolve_target(RESIZE["_target_"], ["sam_train.geometry"]) is Resize
    with pytest.raises(ConfigError, match=r"is outside sam_train\.model"):
        resolve_target(RESIZE["_target_"], ["sam_train.model"])


def test_targets_lists_every_one_with_its_keys() -> None:
    node = {"_target_": "a", "x": 1, "_partial_": True, "inner": [{"_target_": "b"}, "text", {"deep": {"_target_": "c", "y": 2}}]}
    assert [name for name, _ in targets(node)] == ["a", "b", "c"]
    assert set(targets(node)[0][1]) == {"x", "inner"}
    assert targets(node)[2][1] == {"y": 2}
    assert targets("text") == targets(None) == targets([]) == []


def test_hash_looks_at_values_not_at_order_or_notation() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) == config_hash(OmegaConf.create({"b": 2, "a": 1}))
    assert config_hash({"a": 1, "b": "${a}"}) == config_hash({"a": 1, "b": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert len(config_hash({})) == 12


def test_saved_config_reads_without_hydra(tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.yaml"
    save_resolved(OmegaConf.create({"side": 9, "size": "${side}", "rate": 1e-3}), path)
    assert to_plain(OmegaConf.load(path)) == {"side": 9, "size": 9, "rate": 1e-3}


def test_config_dir_is_that_of_the_checkout(repo_root: Path) -> None:
    assert config.config_dir() == str(repo_root / "configs")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("points_per_side", "eight", "points_per_side is 'eight': expected int"),
        ("pred_iou_thresh", "high", "pred_iou_thresh is 'high': expected float"),
        ("inclusive_boxes", 1, "inclusive_boxes is 1: expected bool"),
        ("max_area_fraction", "much", "max_area_fraction is 'much': expected float or null"),
        ("points_per_side", -1, "points_per_side must be an integer of at least 0, got -1"),
    ],
)
def test_a_value_of_another_type_or_range_is_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build({"_target_": "sam_train.inference.GridMaskGenerator", key: value})


def test_an_integer_is_a_float_and_null_is_none() -> None:
    build({"_target_": "sam_train.inference.GridMaskGenerator", "pred_iou_thresh": 1, "max_area_fraction": None})
