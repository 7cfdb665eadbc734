"""sam-evaluate gives the same measures when interrupted and resumed, and in slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sam_train import evaluate
from sam_train.checkpoint import save_checkpoint
from sam_train.config import build, config_dir
from sam_train.errors import ConfigError
from sam_train.evaluation.clicks import ClickProtocol
from sam_train.evaluation.protocol import EvaluationImage
from sam_train.inference import Predictor
from sam_train.shards import write_shard


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_shard(root / "shards" / "sa_000000.tar", [make_sample(index) for index in range(5)])
    config = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "model" / "vit_nano.yaml"))
    for name in ("model", "other"):
        save_checkpoint(root / f"{name}.pt", build(config), config, {})
    return root


def run(world: Path, *overrides: str, model: str = "model.pt") -> dict[str, Any]:
    given = [f"checkpoint={world}/{model}", f"shards={world}/shards", "protocol.num_clicks=3", *overrides]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return dict(evaluate.run(compose("evaluate", overrides=given)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the images that were measured, not loaded from the result cache."""
    numbers: list[int] = []
    real = ClickProtocol.measure

    def measure(self: ClickProtocol, predictor: Predictor, image: EvaluationImage) -> dict[str, Any]:
        numbers.append(image.number)
        return real(self, predictor, image)

    monkeypatch.setattr(ClickProtocol, "measure", measure)
    return numbers


def test_slices_and_resumed_runs_give_the_same_measures(world: Path, tmp_path: Path, measured: list[int]) -> None:
    whole = run(world, f"out={tmp_path}/whole.json")
    assert measured == [1, 2, 3, 4, 5]
    assert whole["num_images"] == 5
    measured.clear()
    cached = f"result_cache={tmp_path}/cache"
    assert run(world, cached, "slice=0/2", f"out={tmp_path}/none.json") == {}
    assert not (tmp_path / "none.json").exists()
    assert run(world, cached, "slice=1/2", f"out={tmp_path}/last.json") == whole, "the last slice has them all"
    assert measured == [1, 3, 5, 2, 4]
    measured.clear()
    (tmp_path / "cache" / "000003_sa_000002.json").unlink()
    assert run(world, cached, f"out={tmp_path}/again.json") == whole
    assert measured == [3]
    documents = [(tmp_path / name).read_text() for name in ("whole.json", "last.json", "again.json")]
    assert documents[0] == documents[1] == documents[2]


def test_measures_are_top_level_keys_of_the_json(world: Path, tmp_path: Path) -> None:
    found = run(world, f"out={tmp_path}/a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert set(document) == {"checkpoint", *found}
    assert list(found) == ["miou_at_1", "miou_at_3", "oracle_at_1", "num_masks", "num_images"]


def test_max_images_are_evenly_spaced(world: Path, measured: list[int]) -> None:
    assert run(world, "max_images=2")["num_images"] == 2
    assert measured == [1, 3]
    assert run(world, "max_images=9")["num_images"] == 5


def test_more_images_later_measure_only_the_rest(world: Path, tmp_path: Path, measured: list[int]) -> None:
    run(world, "max_images=2", f"result_cache={tmp_path}/j")
    run(world, f"result_cache={tmp_path}/j")
    assert measured == [1, 3, 2, 4, 5]


@pytest.mark.parametrize("change", [["protocol.seed=1"], ["model"]])
def test_rejects_a_result_cache_with_other_settings(world: Path, tmp_path: Path, change: list[str]) -> None:
    run(world, "max_images=1", f"result_cache={tmp_path}/j")
    model = "other.pt" if change == ["model"] else "model.pt"
    with pytest.raises(ConfigError, match=r"holds measurements with another (checkpoint|protocol): name another"):
        run(world, f"result_cache={tmp_path}/j", *(c for c in change if c != "model"), model=model)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("slice=0/2", "slice= needs result_cache=FOLDER, which all slices share"),
        ("slice=2/2", "slice is '2/2': expected I/N with I from 0 to N - 1"),
        ("slice=half", "slice is 'half': expected I/N"),
        ("max_images=0", "max_images must be 1 or more"),
        ("checkpoint=null", "sam-evaluate needs checkpoint=FILE"),
        ("shards=null", "this protocol evaluates on shards: give shards=FOLDER"),
        ("protocol.click=left", "click must be one of center, random_first, uniform, got 'left'"),
        ("protocol.min_area_px=100000", "no mask to evaluate in 5 images"),
    ],
)
def test_rejects_invalid_arguments(world: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(world, override)


def test_prints_published_figures_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    from sam_train.evaluation.protocol import Summary

    evaluate._print_summary(
        Summary(
            measures={"ods": 0.5, "num_images": 3},
            paper={"paper": {"ods": 0.768}},
            rows=[{"data_set": "A", "miou_at_1": 0.25}, {"data_set": "B", "miou_at_1": None}],
            columns={"data_set": "data set", "miou_at_1": "@1"},
            notes=["absent: B" + " and more" * 20],
        )
    )
    shown = capsys.readouterr().out
    assert " and more" * 20 in shown, "a command in a note is one line"
    for words in ("0.5000", "0.7680", "num_images", "3", "0.250 ", "@1", "absent: B"):
        assert words in shown
