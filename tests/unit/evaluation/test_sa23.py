"""The SA-23 suite: means over masks, then over data sets; reports of absent data sets; the paper's table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_mask_record, make_sample
from fake_sam import SIZE, Candidates, ScriptedSam
from omegaconf import OmegaConf

from sam_train.cli.data_command import parser
from sam_train.config import build, config_dir
from sam_train.errors import ConfigError
from sam_train.evaluation.clicks import ClickProtocol
from sam_train.evaluation.sa23 import Sa23Protocol
from sam_train.inference import Predictor
from sam_train.shards import write_shard

TABLE = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "protocol" / "sa23.yaml"))["datasets"]
ENTRY = {"title": "A", "images": 5, "masks": 7, "over_ritm": 1.5, "download": "somewhere", "import": "yolo --out ROOT/a"}


def squares(num_masks: int, index: int) -> tuple[Any, bytes]:
    """Return an image with squares of 10 x 10 pixels at different positions."""
    record, jpeg = make_sample(index, height=SIZE, width=SIZE)
    masks = []
    for n in range(num_masks):
        mask = np.zeros((SIZE, SIZE), bool)
        top, left = divmod(n, 5)
        mask[12 * top : 12 * top + 10, 12 * left : 12 * left + 10] = True
        masks.append(make_mask_record(mask, mask_id=n))
    return replace(record, masks=masks), jpeg


def right_in(rows: int) -> Callable[[list[tuple[float, float, int]], bool], Candidates]:
    """Knows squares of the first rows of them; of others half, until the second click."""

    def answer(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
        x, y, _ = points[0]
        top, left = 12 * int(y // 12), 12 * int(x // 12)
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[top : top + (10 if y < 12 * rows or len(points) > 1 else 5), left : left + 10] = True
        return [(mask, 0.9)] * (3 if multimask else 1)

    return answer


def suite(root: Path, *names: str, **choices: Any) -> Sa23Protocol:
    clicks = ClickProtocol(num_clicks=2, min_area_px=1, report=[1, 2])
    return Sa23Protocol(clicks=clicks, root=str(root), datasets={name: {**ENTRY, "title": name} for name in names}, **choices)


def summary(protocol: Sa23Protocol, model: ScriptedSam) -> Any:
    predictor = Predictor(model)
    return protocol.summarize([protocol.measure(predictor, image) for image in protocol.list_images(None)])


def test_mean_is_over_masks_then_over_data_sets(tmp_path: Path) -> None:
    write_shard(tmp_path / "a" / "sa_000000.tar", [squares(10, 0)])
    write_shard(tmp_path / "b" / "sa_000000.tar", [squares(3, 0), squares(2, 1)])
    found = summary(suite(tmp_path, "a", "b"), ScriptedSam(right_in(rows=1)))
    # a: 5 of 10 right, the others half: 0.75. b: all right.
    assert found.measures["miou_at_1"] == pytest.approx((0.75 + 1) / 2)
    assert found.measures["miou_at_2"] == pytest.approx(1)
    assert (found.measures["num_masks"], found.measures["num_images"], found.measures["num_datasets"]) == (15, 3, 2)
    assert [(row["data_set"], row["miou_at_1"], row["num_masks"]) for row in found.rows] == [("a", 0.75, 10), ("b", 1, 5)]
    assert found.rows[0]["paper_over_ritm"] == "+1.5"
    assert set(found.columns) < set(found.rows[0])
    assert found.notes == []
    assert found.paper["SAM ViT-H, all 23 (SAM 2 paper)"] == {"miou_at_1": 0.581, "miou_at_5": 0.813}


def test_reports_an_absent_data_set_with_instructions(tmp_path: Path) -> None:
    write_shard(tmp_path / "a" / "sa_000000.tar", [squares(1, 0)])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "sa_000000.tar").write_bytes(b"unfinished")
    found = summary(suite(tmp_path, "a", "b", "c"), ScriptedSam(right_in(rows=1)))
    assert found.measures["num_datasets"] == 1
    assert [row["miou_at_1"] for row in found.rows] == [1, None, None]
    assert found.notes[0] == "These means are over 1 of 3 data sets; the published means are over 23"
    assert found.notes[1] == f"absent: b: from somewhere; then sam-data import yolo --out {tmp_path}/a"
    assert len(found.notes) == 3


def test_subsamples_a_data_set_of_many_masks_by_whole_images(tmp_path: Path) -> None:
    write_shard(tmp_path / "a" / "sa_000000.tar", [squares(4, index) for index in range(6)])
    write_shard(tmp_path / "a" / "sa_000001.tar", [squares(4, index) for index in range(6, 10)])
    keys = {
        many: [image.name for image in suite(tmp_path, "a", subsample_above_masks=many, subsample_to_masks=10).list_images(None)]
        for many in (40, 39)
    }
    assert len(keys[40]) == 10, "not more than so many"
    assert len(keys[39]) == 3, "12 masks: the image that passes 10 is in whole"
    assert keys[39] == sorted(keys[39])
    assert keys[39] == [s.name for s in suite(tmp_path, "a", subsample_above_masks=39, subsample_to_masks=10).list_images(None)]
    assert keys[39] != keys[40][:3], "drawn, not the first"


def test_names_are_unique_and_numbers_count_per_data_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name / "sa_000000.tar", [squares(1, 0), squares(1, 1)])
    images = suite(tmp_path, "a", "b").list_images(None)
    assert len({image.name for image in images}) == 4
    assert [image.number for image in images] == [1, 2, 1, 2]


def test_rejects_invalid_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data set 'x' in the table: expected names of a, b"):
        suite(tmp_path, "a", "b", only=["x", "a"])
    with pytest.raises(ConfigError, match=r"has shards of no data set.*\n  a: from somewhere; then sam-data import yolo"):
        suite(tmp_path, "a").list_images(None)
    with pytest.raises(ConfigError, match=r"protocol=sa23 takes no shards=: give protocol\.root=FOLDER"):
        suite(tmp_path, "a").list_images("shards")
    with pytest.raises(ConfigError, match="data set a: missing or unknown keys: mask, masks;"):
        Sa23Protocol(clicks=ClickProtocol(), datasets={"a": {"mask" if k == "masks" else k: v for k, v in ENTRY.items()}})


def test_table_equals_the_papers() -> None:
    assert len(TABLE) == 23
    assert sum(entry["over_ritm"] > 0 for entry in TABLE.values()) == 16, "SAM is above RITM on 16 of 23"
    assert sum(entry["masks"] for entry in TABLE.values()) == 172_653
    assert TABLE["bbbc038v1"]["masks"] == 10_506
    assert (TABLE["gtea"]["images"], TABLE["gtea"]["over_ritm"]) == (652, -21.4)
    assert all(entry["masks"] <= 15_000 for entry in TABLE.values())


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry["import"]])
def test_every_import_is_a_valid_command(name: str) -> None:
    command = TABLE[name]["import"]
    assert command.endswith(f"--out ROOT/{name}")
    assert not re.search(r"(?<![\w/])/|\\", command.replace("SOURCE/", "").replace("ROOT/", "")), "no path of a machine"
    parser().parse_args(["import", *shlex.split(command)])


def test_config_builds_the_papers_protocol(tmp_path: Path) -> None:
    config = OmegaConf.load(Path(config_dir()) / "protocol" / "sa23.yaml")
    protocol = build(config)
    assert protocol.clicks.report == (1, 2, 3, 5, 9)
    assert (protocol.subsample_above_masks, protocol.subsample_to_masks, protocol.clicks.num_clicks) == (15_000, 10_000, 9)
    assert len(protocol.datasets) == 23
