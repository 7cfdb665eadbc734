"""sam-data stats: its numbers are those of the shards, and its page needs no other file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corruptions import CORRUPTIONS, read_members, write_members

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards import encode_jpeg, write_shard
from sam_train.shards.maintenance.statistics.figures import draw_all, images_by_mask_bin
from sam_train.shards.maintenance.statistics.measure import HEAT_SIDE, Statistics, measure_shard
from sam_train.shards.maintenance.statistics.page import as_document, render

FIGURES = ("mask_centres", "masks_per_image", "relative_size", "concavity", "predicted_iou", "stability_score")


def measured(*shards: Path) -> Statistics:
    whole = Statistics()
    for shard in shards:
        whole.add(measure_shard(shard, lambda _: None))
    return whole


def stats(out: Path, *arguments: object) -> int:
    try:
        main(["stats", *map(str, arguments), "--out", str(out)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def shard_of(path: Path, masks: list[MaskRecord], *, height: int = 40, width: int = 80) -> Path:
    record = ImageRecord(key="a", image_id=1, width=width, height=height, masks=masks)
    write_shard(path, [(record, encode_jpeg(np.zeros((height, width, 3), np.uint8)))])
    return path


def test_statistics_of_a_set_counted_by_hand(tmp_path: Path, mask_record: Callable[..., MaskRecord]) -> None:
    square, ell = np.zeros((2, 40, 80), bool)
    square[10:20, 40:50] = True
    ell[0:20, 0:20] = True
    ell[0:10, 10:20] = False
    by_hand = Provenance(stage="assisted_manual", checkpoint="", annotator="a", config="", seconds=7.0)
    masks = [mask_record(square, mask_id=1, provenance=by_hand), replace(mask_record(ell, mask_id=2), predicted_iou=1.5)]
    found = measured(shard_of(tmp_path / "a.tar", masks))
    assert (found.num_images, found.num_masks, found.num_pixels, found.masks_per_image) == (1, 2, 3200, {2: 1})
    sizes = np.sqrt([100 / 3200, 300 / 3200])
    assert found.totals["relative_size"] == pytest.approx(sizes.sum())
    assert np.flatnonzero(found.histograms["relative_size"]).tolist() == [int(100 * size) for size in sizes]
    hull = 400 - 50  # the corner that the L leaves out, cut across
    assert found.totals["concavity"] == pytest.approx(1 - 300 / hull)
    assert found.histograms["predicted_iou"][[90, 99]].tolist() == [1, 1]
    row, column = int(15 / 40 * HEAT_SIDE), int(45 / 80 * HEAT_SIDE)
    assert found.centres[row, column] == 1
    assert {name: (stage.num_masks, stage.seconds) for name, stage in found.stages.items()} == {
        "assisted_manual": (1, 7.0),
        "no provenance": (1, 0.0),
    }


def test_bins_of_the_paper() -> None:
    statistics = Statistics(num_images=9)
    statistics.masks_per_image.update({0: 1, 10: 1, 11: 1, 50: 1, 51: 1, 100: 1, 101: 1, 200: 1, 201: 1})
    assert list(images_by_mask_bin(statistics).values()) == [2, 2, 2, 2, 1]


def test_page_loads_no_other_file(tiny_shard: Path, tmp_path: Path) -> None:
    assert stats(tmp_path / "out", tiny_shard, "--name", "A <set>") == 0
    page = (tmp_path / "out" / "stats.html").read_text()
    assert page.count("<svg role=") == len(FIGURES)
    assert "A &lt;set&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r'(src|href)="(?!data:|#)|@import|url\((?!#)', page.replace('href="http://www.w3.org', ""))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    document = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert (document["num_images"], document["num_masks"], document["median_masks_per_image"]) == (3, 3, 1)
    assert document["images_by_bin_of_masks"]["up to 10"] == 3
    assert sum(document["histograms"]["concavity"]) == 3
    for name in FIGURES:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_deterministic(tiny_shard: Path) -> None:
    first, second = ([(d.name, d.svg, d.png) for d in draw_all(measured(tiny_shard))] for _ in range(2))
    assert first == second


def test_several_processes_give_the_same_result(tiny_shard: Path, tmp_path: Path) -> None:
    shards = [write_members(tmp_path / f"{n}.tar", read_members(tiny_shard)) for n in range(3)]
    for workers in (1, 2):
        assert stats(tmp_path / str(workers), *shards, "--workers", workers) == 0
    assert (tmp_path / "1" / "stats.json").read_bytes() == (tmp_path / "2" / "stats.json").read_bytes()


def test_reports_invalid_samples(tiny_shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [
        write_members(tmp_path / f"{number}.tar", CORRUPTIONS[name][0](read_members(tiny_shard)))
        for number, name in enumerate(("no jpg", "not json", "rle counts"))
    ]
    (tmp_path / "3.tar").write_bytes(tiny_shard.read_bytes()[:1000])
    assert stats(tmp_path / "out", *shards, tmp_path / "3.tar") == 0
    left_out = json.loads((tmp_path / "out" / "stats.json").read_text())["left_out"]
    assert left_out == {
        "damaged regions of tars": 1,
        "masks with an invalid RLE": 1,
        "samples with an invalid record": 1,
        "samples without JPEG, JSON or a valid name": 1,
    }
    assert "excluded: 1 masks with an invalid RLE" in capsys.readouterr().out
    assert "Excluded: 1 masks with an invalid RLE" in (tmp_path / "out" / "stats.html").read_text()


def test_rejects_shards_without_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(tmp_path / "out", shard_of(tmp_path / "a.tar", [])) == 1
    assert "no mask in 1 shards and 1 images" in capsys.readouterr().err


def test_masks_that_no_model_rated_have_no_score_and_no_time(tmp_path: Path, sample: Callable[..., Any]) -> None:
    record, jpeg = sample(0, num_masks=2)
    imported = Provenance(stage="import", checkpoint="", annotator="coco", config="")
    masks = [replace(m, predicted_iou=1.0, stability_score=1.0, provenance=imported) for m in record.masks]
    write_shard(tmp_path / "a.tar", [(replace(record, masks=masks), jpeg)])
    statistics = measure_shard(tmp_path / "a.tar", lambda _: None)
    assert statistics.num_masks == 2
    assert as_document(statistics)["means"]["predicted_iou"] is None
    page = render(statistics, draw_all(statistics), name="set")
    assert "mean 1.000" not in page
    assert "<td>100.0%</td><td>-</td>" in page
