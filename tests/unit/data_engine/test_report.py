"""The report: numbers against values computed by hand, a page that parses and escapes names, and unfinished runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from data_engine.commands import REPORT
from data_engine.report import write_report
from data_engine.report.comparison import compare_models, representative_indices
from data_engine.report.curves import training_svg
from data_engine.report.cycle_run import read_run
from data_engine.report.mask_distributions import distributions_svg, measure_stage
from data_engine.report.mask_images import MAX_HEIGHT_PX, MAX_WIDTH_PX, draw_sample, to_thumbnail, window_around
from data_engine.report.stage_statistics import best_ious
from data_engine.report.training_log import Series, concatenate, read_log, smooth
from sam_train.checkpoint import checkpoint_hash, save_checkpoint
from sam_train.errors import ConfigError, ShardError
from sam_train.model.build import build_sam
from sam_train.records import ImageRecord, MaskRecord
from sam_train.rle import encode_rle, mask_to_box_xywh
from sam_train.shards import Sample, encode_jpeg, manifest_path, write_shard
from sam_train.shards.maintenance.statistics.measure import Statistics

HEIGHT, WIDTH = 48, 64
TINY = {
    "image_size": 64,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "window_size": 4,
    "prompt_dim": 32,
    "decoder_mlp_dim": 32,
    "decoder_heads": 2,
    "use_rel_pos": False,
    "stem": "conv",
}
STAGES = ("assisted_manual", "assisted_manual", "fully_automatic")
STEPS = tuple(f"{number}_{stage}" for number, stage in enumerate(STAGES, 1))
VOID_TAGS = {"meta", "img", "br", "link", "hr"}
FIRST_KEYS = [
    "stage",
    "images",
    "masks_per_image",
    "clicks_per_mask",
    "seconds_per_mask",
    "mean_iou",
    "miou_at_1",
    "miou_at_3",
    "miou_at_5",
]
LOG = """epoch,step,train/iou_first_round,train/iou_last_round,train/loss,val/miou_at_1
0,0,0.10,0.20,2.0,
0,0,,,,0.3
0,1,0.20,0.40,1.0,
"""


def rectangle(left: int, right: int, *, top: int = 0, bottom: int = 10, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def image(key: str, *masks: np.ndarray, height: int = HEIGHT, width: int = WIDTH) -> tuple[ImageRecord, bytes]:
    records = [
        MaskRecord(
            id=index,
            segmentation=encode_rle(mask),
            bbox=mask_to_box_xywh(mask),
            area=int(mask.sum()),
            predicted_iou=0.9,
            stability_score=0.9,
            crop_box=[0.0, 0.0, float(width), float(height)],
            point_coords=[[1.0, 1.0]],
        )
        for index, mask in enumerate(masks)
    ]
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return ImageRecord(key=key, image_id=0, width=width, height=height, masks=records), encode_jpeg(pixels)


TRUTH = [image("a", rectangle(0, 20), rectangle(30, 50)), image("b", rectangle(0, 40, bottom=30)), image("c")]
# IoU with TRUTH: half of the first object and all of the second (0.5, 1), a third of the one in b (1/3), and one mask in c,
# which has no object (0).
WRITTEN = [
    image("a", rectangle(0, 10), rectangle(30, 50)),
    image("b", rectangle(0, 40)),
    image("c", rectangle(0, 5)),
]
MEAN_IOU = (0.5 + 1 + 1 / 3 + 0) / 4
COUNTS = {"clicks": 6.0, "seconds": 30.0, "masks_drawn": 1.0, "dropped/nms": 3.0, "dropped/<odd> & reason": 1.0}


@dataclass
class FakeRun:
    """A run folder that is filled step by step, as by a data-engine loop."""

    folder: Path
    history: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, stages: tuple[str, ...] = STAGES, **corpus: str) -> None:
        self.folder.mkdir(parents=True)
        corpus = {"ground_truth": str(self.folder.parent / "truth"), "heldout": str(self.folder.parent / "truth"), **corpus}
        write_shard(self.folder.parent / "truth" / "sa_000000.tar", TRUTH)
        config = {"name": "x", "corpus": corpus, "stages": [{"stage": stage} for stage in stages]}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def annotate(self, step: str, samples: list[tuple[ImageRecord, bytes]], index: int = 0, **counts: float) -> Path:
        shard = self.folder / step / "shards" / f"sa_{index:06d}.tar"
        write_shard(shard, samples, counts=counts, skipped={"tiny.png": "too_small"})
        return shard

    def train(self, step: str, *, promoted: bool, miou: float, seed: int = 0) -> None:
        path = self.folder / step / "train" / "model.pt"
        torch.manual_seed(seed)
        save_checkpoint(path, build_sam(**TINY), {"_target_": "sam_train.model.build.build_sam", **TINY}, {"seed": seed})
        (path.parent / "csv").mkdir()
        (path.parent / "csv" / "metrics.csv").write_text(LOG)
        means = {"checkpoint": checkpoint_hash(path), "miou_at_1": miou, "miou_at_3": miou + 0.1, "miou_at_5": miou + 0.2}
        (self.folder / step / "evaluation.json").write_text(json.dumps(means))
        entry = {"step": step, "checkpoint": f"{step}/train/model.pt", "sha256": checkpoint_hash(path), "promoted": promoted}
        self.history.append({**entry, "evaluation": means})
        document = {"checkpoint": entry["checkpoint"], "sha256": entry["sha256"], "history": self.history}
        (self.folder / "promoted.json").write_text(json.dumps(document))


class Page(HTMLParser):
    """Parser that checks the order of closing tags and collects ids, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A run whose name must be escaped wherever it is printed."""
    return FakeRun(tmp_path / "<b>run & co")


@pytest.fixture
def finished(run: FakeRun) -> FakeRun:
    """Three stages; the model of the second one was not promoted."""
    run.begin()
    run.annotate(STEPS[0], WRITTEN[:2], 0, **COUNTS)
    run.annotate(STEPS[0], WRITTEN[2:], 1, clicks=2.0, seconds=10.0)
    run.train(STEPS[0], promoted=True, miou=0.4)
    run.annotate(STEPS[1], WRITTEN[:1], **COUNTS)
    run.train(STEPS[1], promoted=False, miou=0.3, seed=1)
    run.annotate(STEPS[2], WRITTEN, masks_automatic=4.0)
    run.train(STEPS[2], promoted=True, miou=0.5, seed=2)
    return run


def stages_of(run: FakeRun) -> list[dict[str, Any]]:
    return json.loads((run.folder / "report.json").read_bytes())["stages"]


def test_statistics_of_a_finished_run(finished: FakeRun) -> None:
    report = write_report(finished.folder)
    assert report.notes == []
    first, second, third = stages_of(finished)
    assert list(first)[: len(FIRST_KEYS)] == FIRST_KEYS
    assert (first["stage"], first["images"], first["masks"]) == ("assisted_manual", 3, 4)
    assert first["masks_per_image"] == pytest.approx(4 / 3)
    assert first["clicks_per_mask"] == pytest.approx(8 / 4)
    assert first["seconds_per_mask"] == pytest.approx(40 / 4)
    assert first["mean_iou"] == pytest.approx(MEAN_IOU)
    assert first["dropped"] == {"<odd> & reason": 1, "nms": 3}
    assert first["skipped"] == {"too_small": 2}
    assert second["mean_iou"] == pytest.approx(0.75)
    assert third["mean_iou"] == pytest.approx(MEAN_IOU)
    # The third stage has no annotator, so its missing counts are zero.
    assert (third["clicks_per_mask"], third["seconds_per_mask"]) == (0, 0)


def test_mean_iou_of_the_model_in_use_after_a_rejected_one(finished: FakeRun) -> None:
    write_report(finished.folder)
    first, second, third = stages_of(finished)
    assert [line["promoted"] for line in (first, second, third)] == [True, False, True]
    for clicks, added in ((1, 0.0), (3, 0.1), (5, 0.2)):
        values = [line[f"miou_at_{clicks}"] for line in (first, second, third)]
        assert values == pytest.approx([0.4 + added, 0.4 + added, 0.5 + added])
    assert second["candidate"]["miou_at_1"] == pytest.approx(0.3)


def test_page_parses_and_loads_no_other_file(finished: FakeRun) -> None:
    report = write_report(finished.folder)
    page = Page(report.html_path.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("#", "data:image/jpeg;base64,"))
        assert not address.startswith("#") or address[1:] in page.ids
    assert "script" not in page.tags
    assert "b>run" not in page.tags
    assert "<b>run & co" in page.text
    assert "<odd> & reason" in page.text
    # Three stages with 3, 1 and 3 images; the click and two predictions for each of the three held-out objects; the same with
    # only the last prediction, as the worst.
    assert len([a for a in page.addresses if a.startswith("data:")]) == 7 + 3 * 3 + 3 * 2
    assert "not yet" not in page.text


def test_names_from_the_config_are_escaped_everywhere(run: FakeRun) -> None:
    name = '<i onclick="x">$a_b$'
    run.begin(stages=(name,))
    run.annotate(f"1_{name}", WRITTEN, clicks=1.0, seconds=1.0)
    run.train(f"1_{name}", promoted=True, miou=0.2)
    page = Page(write_report(run.folder).html_path.read_text())
    assert "i" not in page.tags
    assert '1 <i onclick="x">$a b$' in page.text


def test_report_of_the_same_run_has_the_same_bytes(finished: FakeRun) -> None:
    report = write_report(finished.folder)
    before = report.html_path.read_bytes(), report.json_path.read_bytes()
    write_report(finished.folder)
    assert (report.html_path.read_bytes(), report.json_path.read_bytes()) == before


def test_report_of_a_run_that_has_only_a_config(run: FakeRun) -> None:
    run.begin()
    report = write_report(run.folder)
    for line in stages_of(run):
        assert all(line[key] is None for key in FIRST_KEYS[1:])
    assert any("no model has been promoted yet" in note for note in report.notes)
    page = Page(report.html_path.read_text())
    assert "not yet" in page.text
    assert "No image was written yet." in page.text


def test_report_of_a_stage_that_is_annotated_but_not_trained(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], WRITTEN, **COUNTS)
    run.train(STEPS[0], promoted=True, miou=0.4)
    run.annotate(STEPS[1], WRITTEN[:1], **COUNTS)
    report = write_report(run.folder)
    first, second, third = report.stages
    assert first.miou_at_1 == pytest.approx(0.4)
    assert second.mean_iou == pytest.approx(0.75)
    assert (second.miou_at_1, second.promoted, second.candidate) == (None, None, None)
    assert third.images is None
    Page(report.html_path.read_text())


def test_shard_without_manifest_is_excluded_with_a_note(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], WRITTEN[:2], 0)
    manifest_path(run.annotate(STEPS[0], WRITTEN[2:], 1)).unlink()
    report = write_report(run.folder)
    assert report.stages[0].images == 2
    assert any(note.startswith(f"{STEPS[0]}: 1 shards are excluded") for note in report.notes)


def test_report_of_a_stage_that_wrote_no_mask(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], [image("a"), image("b")], clicks=0.0, seconds=0.0)
    report = write_report(run.folder)
    line = report.stages[0]
    assert (line.images, line.masks, line.masks_per_image) == (2, 0, 0)
    assert (line.clicks_per_mask, line.mean_iou) == (None, None)
    assert "no masks" in report.html_path.read_text()


def test_missing_counts_are_not_zero(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], WRITTEN)
    report = write_report(run.folder)
    assert report.stages[0].clicks_per_mask is None
    assert "not counted" in report.html_path.read_text()


def test_dropped_counts_of_earlier_versions_have_the_present_name(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], WRITTEN[:1], 0, **{"dropped/pred_iou": 2.0})
    run.annotate(STEPS[0], WRITTEN[1:], 1, **{"dropped/predicted_iou": 3.0})
    assert write_report(run.folder).stages[0].dropped == {"predicted_iou": 5.0}


@pytest.mark.parametrize("ground_truth", ["", "/nowhere/truth"])
def test_report_without_ground_truth(run: FakeRun, ground_truth: str) -> None:
    run.begin(ground_truth=ground_truth)
    run.annotate(STEPS[0], WRITTEN, **COUNTS)
    report = write_report(run.folder)
    assert report.stages[0].mean_iou is None
    assert any("ground_truth" in note or "ground truth" in note for note in report.notes)
    assert "no ground truth" in report.html_path.read_text()


def test_image_without_ground_truth_is_excluded_from_mean_iou(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], [*WRITTEN[:1], image("unknown", rectangle(0, 9))])
    report = write_report(run.folder)
    assert report.stages[0].mean_iou == pytest.approx(0.75)
    assert report.stages[0].masks_without_truth == 1
    assert any("1 masks are not in the mean IoU because their image has no ground truth" in note for note in report.notes)


def test_rejects_ground_truth_of_another_size(run: FakeRun) -> None:
    run.begin()
    run.annotate(STEPS[0], [image("a", rectangle(0, 9, height=40, width=40), height=40, width=40)])
    with pytest.raises(ShardError, match="differ in size"):
        write_report(run.folder)


def test_best_iou_is_zero_without_ground_truth_and_empty_without_a_mask() -> None:
    one_mask, no_mask = image("a", rectangle(0, 9))[0], image("a")[0]
    assert best_ious(one_mask, no_mask).tolist() == [0.0]
    assert best_ious(no_mask, one_mask).shape == (0,)


def test_comparison_of_the_only_promoted_model(run: FakeRun) -> None:
    run.begin()
    run.train(STEPS[0], promoted=True, miou=0.4)
    report = write_report(run.folder)
    assert "the only model promoted so far" in report.html_path.read_text()
    compared = json.loads(report.json_path.read_bytes())["comparison"]
    assert (compared["steps"], compared["num_objects"], len(compared["mean_ious"])) == ([STEPS[0]], 3, 1)


def test_comparison_clicks_inside_its_targets_and_sorts_by_gain(finished: FakeRun) -> None:
    comparison = compare_models(read_run(finished.folder), num_images=3, device=torch.device("cpu"))
    assert comparison.steps == (STEPS[0], STEPS[2])
    assert comparison.num_better + comparison.num_worse <= comparison.num_objects == 3
    gains = [item.gain for item in comparison.shown]
    assert gains == sorted(gains, reverse=True)
    for item in comparison.shown:
        x, y = item.click_xy
        mask = next(m for record, _ in TRUTH for m in record.masks if m.segmentation == item.target)
        left, top, width, height = mask.bbox
        assert left <= x < left + width
        assert top <= y < top + height


def test_worst_predictions_are_those_of_the_last_model(finished: FakeRun) -> None:
    comparison = compare_models(read_run(finished.folder), num_images=3, device=torch.device("cpu"))
    last = [item.ious[-1] for item in comparison.worst]
    assert len(last) == comparison.num_objects == 3
    assert last == sorted(last)
    page = Page(write_report(finished.folder).html_path.read_text())
    assert "worst" in page.ids
    assert f"IoU {last[0]:.2f}" in page.text


def test_page_has_mask_distributions_and_annotator_hours(finished: FakeRun) -> None:
    page = Page(write_report(finished.folder).html_path.read_text())
    for title in ("% of images, by number of masks", "Relative size of masks", "Concavity of masks"):
        assert title in page.text
    stages = [line for line in stages_of(finished) if line["seconds_per_mask"]]
    hours = sum(line["seconds_per_mask"] * line["masks"] for line in stages) / 3600
    assert f"Annotator hours{hours:,.1f}" in page.text.replace("\n", "")


def test_measures_some_of_many_shards_with_a_note(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.report.mask_distributions.MAX_SHARDS", 2)
    monkeypatch.setattr("data_engine.report.build_report.MAX_SHARDS", 2)
    run.begin()
    shards = [run.annotate(STEPS[0], WRITTEN[i : i + 1], i) for i in range(3)]
    assert measure_stage(shards).masks_per_image == {2: 1, 1: 1}, "the first and the last"
    assert f"{STEPS[0]}: the mask distributions are those of 2 of 3 shards." in write_report(run.folder).notes


def test_no_figure_without_masks() -> None:
    assert distributions_svg(["a", "b"], [Statistics(), Statistics()]) == ""


def test_missing_or_replaced_checkpoint_gives_a_note(finished: FakeRun) -> None:
    first, last = (finished.folder / step / "train" / "model.pt" for step in (STEPS[0], STEPS[2]))
    shutil.copy(first, last)
    assert any("is not the model that was promoted" in note for note in write_report(finished.folder).notes)
    last.unlink()
    report = write_report(finished.folder)
    assert any("restore it" in note for note in report.notes)
    assert report.stages[2].miou_at_1 == pytest.approx(0.5)


def test_held_out_shards_without_a_large_object_give_a_note(run: FakeRun, tmp_path: Path) -> None:
    write_shard(tmp_path / "empty" / "sa_000000.tar", [image("h")])
    run.begin(heldout=str(tmp_path / "empty"))
    run.train(STEPS[0], promoted=True, miou=0.4)
    assert any("no object of at least" in note for note in write_report(run.folder).notes)


def test_representative_indices_have_both_ends_and_even_ranks() -> None:
    assert representative_indices([0.0, 0.5, -0.2, 0.1, 0.3], 3) == [1, 3, 2]
    assert representative_indices([0.1, 0.2], 6) == [1, 0]
    assert representative_indices([1.0, 1.0, 1.0], 1) == [0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", None, "has no config.yaml"),
        ("config.yaml", "a: [", "is not a YAML config"),
        ("config.yaml", "- a\n", "is not a mapping"),
        ("config.yaml", "name: x\n", "no list `stages`"),
        ("config.yaml", "stages: []\n", "no list `stages`"),
        ("config.yaml", "stages: [{engine: 1}]\n", "names no stage"),
        ("promoted.json", "{", "is not JSON"),
        ("promoted.json", "[]", "holds a JSON list, expected an object"),
        ("promoted.json", "{}", "no list `history`"),
        ("promoted.json", '{"history": [{"step": "x", "checkpoint": 3}]}', "needs `checkpoint` as str"),
        ("1_assisted_manual/evaluation.json", '{"miou_at_1": NaN}', "expected a finite number"),
    ],
)
def test_malformed_files_are_named_in_the_error(run: FakeRun, name: str, content: str | None, message: str) -> None:
    run.begin()
    path = run.folder / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        write_report(run.folder)
    assert not (run.folder / "report.html").exists()


def test_log_is_read_without_its_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_log(path) == {}
    path.write_text(LOG)
    log = read_log(path)
    assert log["train/loss"].values.tolist() == [2.0, 1.0]
    assert (log["val/miou_at_1"].steps.tolist(), log["val/miou_at_1"].values.tolist()) == ([0.0], [0.3])
    series, starts = concatenate([log, {}, log], "train/loss")
    assert [s.steps.tolist() for s in series] == [[0.0, 1.0], [2.0, 3.0]]
    assert starts == [0.0, 2.0, 2.0]


@pytest.mark.parametrize(("text", "message"), [("epoch,loss\n0,1\n", "without `step`"), ("step,loss\n0,high\n", "column loss")])
def test_rejects_an_invalid_log(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_log(path)


def test_smoothing_keeps_length_and_constants() -> None:
    assert smooth(np.ones(7), 4).tolist() == pytest.approx([1.0] * 7)
    assert smooth(np.array([0.0, 3.0, 0.0]), 3).tolist() == pytest.approx([1.5, 1.0, 1.5])


def test_long_log_is_drawn_smoothed(finished: FakeRun) -> None:
    log = finished.folder / STEPS[0] / "train" / "csv" / "metrics.csv"
    log.write_text("step,train/loss\n" + "".join(f"{step},{1 / (step + 1)}\n" for step in range(100)))
    page = Page(write_report(finished.folder).html_path.read_text())
    assert "Training loss" in page.text


def test_draws_masks_on_thumbnails(tmp_path: Path) -> None:
    record, jpeg = image("a", rectangle(0, 32, bottom=24))
    with_mask = draw_sample(Sample(shard="s", jpeg=jpeg, record=record))
    without_mask = draw_sample(Sample(shard="s", jpeg=jpeg, record=image("a")[0]))
    changed = (with_mask != without_mask).any(-1)
    assert with_mask.shape == (round(HEIGHT * MAX_WIDTH_PX / WIDTH), MAX_WIDTH_PX, 3)
    assert changed[:130, :170].mean() > 0.99
    assert not changed[145:].any()
    assert not changed[:, 190:].any()
    assert to_thumbnail(np.zeros((3000, 1000, 3), np.uint8)).shape[:2] == (MAX_HEIGHT_PX, MAX_HEIGHT_PX // 3)


@pytest.mark.parametrize("box", [(0, 4, 0, 4), (60, 64, 40, 48), (0, 64, 0, 48), (30, 31, 0, 48)])
def test_window_contains_all_masks(box: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = box
    mask = rectangle(left, right, top=top, bottom=bottom)
    window = window_around([mask, np.zeros_like(mask)])
    assert mask[window.top : window.bottom, window.left : window.right].sum() == mask.sum()
    assert 0 <= window.left < window.right <= WIDTH
    assert 0 <= window.top < window.bottom <= HEIGHT


def test_command_prints_the_stage_table(finished: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    REPORT.run([f"run={finished.folder}", "heldout_images=1"])
    printed = capsys.readouterr().out
    for step in STEPS:
        assert step in printed
    assert "report.html" in printed
    assert "0.458" in printed
    assert json.loads((finished.folder / "report.json").read_bytes())["comparison"]["num_images"] == 1


def test_command_rejects_a_missing_folder_and_an_invalid_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: no such file or folder: give the folder of the cycle"):
        REPORT.run([f"run={tmp_path / 'nothing'}"])
    with pytest.raises(ConfigError, match="heldout_images=0: expected a whole number of at least 1"):
        REPORT.run([f"run={tmp_path}", "heldout_images=0"])
    with pytest.raises(ConfigError, match=r"does not take '--run': give run=\.\.\. "):
        REPORT.run(["--run", str(tmp_path)])


def test_command_to_run_again_quotes_the_folder(finished: FakeRun) -> None:
    page = Page(write_report(finished.folder).html_path.read_text())
    assert f"sam-cycle --config-path '{finished.folder}' --config-name config run_dir='{finished.folder}_again'" in page.text


def test_reports_initial_model_skipped_step_and_roll_back(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    run.begin(stages=("assisted_manual", "assisted_manual"))
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    config |= {
        "initial_model": {"checkpoint": "weak.pt", "shards": None},
        "stages": [{"stage": "assisted_manual", "num_images": 1, "repeat": 3}],
    }
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    run.train("0_start", promoted=True, miou=0.2, seed=1)
    run.annotate("1_assisted_manual", WRITTEN, **COUNTS)
    run.train("1_assisted_manual", promoted=True, miou=0.5, seed=2)
    run.annotate("2_assisted_manual", WRITTEN, **COUNTS)
    run.train("2_assisted_manual", promoted=True, miou=0.6, seed=3)
    document = json.loads((run.folder / "promoted.json").read_text())
    back = {**document["history"][1], "rolled_back_from": "2_assisted_manual", "because": "it hates cats"}
    document["history"].append(back)
    (run.folder / "promoted.json").write_text(json.dumps(document))
    (run.folder / "3_assisted_manual").mkdir()
    (run.folder / "3_assisted_manual" / "left_out.json").write_text(
        '{"why": "the budget of its stage is spent: 1 of 1 device hours"}'
    )
    (run.folder / "clock.json").write_text('{"1_assisted_manual: train": {"seconds": 7200, "devices": 3}}')
    report = write_report(run.folder)
    assert [line.step for line in report.stages] == ["0_start", "1_assisted_manual", "2_assisted_manual", "3_assisted_manual"]
    assert [line.miou_at_1 for line in report.stages] == [0.2, 0.5, 0.6, None], "each row is of its own time"
    assert [line.left_out for line in report.stages] == [False, False, False, True]
    assert "3_assisted_manual was skipped: the budget of its stage is spent: 1 of 1 device hours." in report.notes
    assert "Rolled back to the model of 1_assisted_manual from that of 2_assisted_manual: it hates cats." in report.notes
    page = report.html_path.read_text()
    for text in ("0 start", "skipped", "it hates cats", "and 6 device hours"):
        assert text in page, text
    assert page.count('<td class="missing">–</td>') == 5 + 8, "a start step writes no masks, a skipped step writes nothing"


@pytest.mark.parametrize(("first", "shown"), [(100, ("1 assisted manual", "2 semi automatic")), (3, (">1<", ">2<"))])
def test_trainings_that_begin_close_to_each_other_are_numbered(first: int, shown: tuple[str, ...]) -> None:
    """Their names would overlap."""
    columns = ("train/loss", "train/iou_first_round")
    logs = [{name: Series(np.arange(float(n)), np.ones(n)) for name in columns} for n in (first, 100)]
    svg = training_svg(["1_assisted_manual", "2_semi_automatic"], logs)
    assert all(svg.count(name) == 2 for name in shown), "above the plots of loss and IoU"
    assert ("assisted" in svg) == (first == 100)


def test_account_of_the_annotators_time(finished: FakeRun) -> None:
    """Two of the three stages have annotators; 4 and 2 masks, of which each takes 36 s by hand."""
    write_report(finished.folder)
    assert json.loads((finished.folder / "report.json").read_bytes())["effort"] is None, "the cost by hand was not counted"
    for step, samples, masks in ((STEPS[0], WRITTEN[:2], 3), (STEPS[1], WRITTEN[:1], 2)):
        finished.annotate(step, samples, 0, **COUNTS, seconds_by_hand=36.0 * masks)
    finished.annotate(STEPS[0], WRITTEN[2:], 1, clicks=2.0, seconds=10.0, seconds_by_hand=36.0)
    write_report(finished.folder)
    effort = json.loads((finished.folder / "report.json").read_bytes())["effort"]
    expected = {"masks": 6, "annotator_hours": 70 / 3600, "hours_by_hand": 6 * 36 / 3600, "miou_at_1": 0.5, "miou_at_5": 0.7}
    assert effort == pytest.approx(expected, abs=1e-3)
    assert "Annotators spent 0.02 hours on 6 masks." in Page((finished.folder / "report.html").read_text()).text


def test_measures_on_the_final_shards(finished: FakeRun) -> None:
    (finished.folder / "final").mkdir()
    for model, miou in (("start", 0.31), ("promoted", 0.52)):
        means = {"checkpoint": "a", "miou_at_1": miou, "miou_at_3": miou + 0.1, "miou_at_5": miou + 0.2}
        (finished.folder / "final" / f"{model}.json").write_text(json.dumps(means))
    write_report(finished.folder)
    final = json.loads((finished.folder / "report.json").read_bytes())["final"]
    assert [final[model]["miou_at_1"] for model in ("start", "promoted")] == [0.31, 0.52]
    text = " ".join(Page((finished.folder / "report.html").read_text()).text.split())
    assert "is 0.310, 0.410, 0.510 with the initial model, 0.520, 0.620, 0.720 with the model in use" in text


def test_overview_shows_stages_and_predictions(finished: FakeRun) -> None:
    write_report(finished.folder)
    overview = cv2.imread(str(finished.folder / "overview.png"))
    assert overview is not None
    assert overview.shape[1] > 1000
    above, below = np.array_split(overview, 2)
    assert (above < 128).mean() > 0.05, "images of the stages"
    assert (below < 128).mean() > 0.05, "predictions and bars"


def overview_shape(run: FakeRun) -> tuple[int, ...]:
    write_report(run.folder)
    overview = cv2.imread(str(run.folder / "overview.png"))
    assert overview is not None
    return overview.shape


def test_overview_of_one_promoted_model_has_one_row(run: FakeRun) -> None:
    """Compare the heights before and after a second model is promoted."""
    run.begin()
    run.annotate(STEPS[0], WRITTEN[:2], 0, **COUNTS)
    run.train(STEPS[0], promoted=True, miou=0.4)
    shapes = [overview_shape(run)]
    run.annotate(STEPS[1], WRITTEN[2:], 0, **COUNTS)
    run.train(STEPS[1], promoted=True, miou=0.5, seed=1)
    shapes.append(overview_shape(run))
    assert shapes[0][1] == shapes[1][1]
    assert shapes[0][0] < 0.6 * shapes[1][0]


def test_no_overview_before_the_first_image(run: FakeRun) -> None:
    run.begin()
    write_report(run.folder)
    assert not (run.folder / "overview.png").exists()
