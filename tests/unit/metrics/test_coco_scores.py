"""AP: both engines agree, boundary AP follows its definition, and unsupported combinations are rejected early."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam_train.errors import ConfigError
from sam_train.metrics.boundary_iou import boundary_iou
from sam_train.metrics.coco_scores import METRIC_NAMES, check_engine, coco_scores
from sam_train.rle import encode_rle

SIZE = 160


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def result(image: int, mask: np.ndarray, score: float, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, "segmentation": encode_rle(mask)}


def write(path: Path, truths: list[tuple[int, int, np.ndarray]], *, num_images: int, crowd: int | None = 0) -> Path:
    """An instances JSON of (image, category, mask); every ninth is a crowd, unless the key is left out."""
    annotations = []
    for i, (image, category, mask) in enumerate(truths):
        entry = {"id": i + 1, "image_id": image, "category_id": category, "segmentation": encode_rle(mask), "bbox": [0, 0, 1, 1]}
        entry |= {"area": int(mask.sum())} | ({} if crowd is None else {"iscrowd": int(i % 9 == 8)})
        annotations.append(entry)
    images = [{"id": i, "height": SIZE, "width": SIZE} for i in range(num_images)]
    categories = [{"id": c, "name": str(c), "frequency": "fcr"[c - 1]} for c in (1, 2, 3)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def noisy(tmp_path: Path, seed: int) -> tuple[Path, list[dict[str, Any]]]:
    """Truths of three categories and results of all qualities, with equal scores among them."""
    rng = np.random.default_rng(seed)
    truths, results = [], []
    for image in range(8):
        for _ in range(rng.integers(1, 7)):
            category, radius = int(rng.integers(1, 4)), float(np.exp(rng.uniform(1, 4)))
            place = rng.uniform(20, SIZE - 20, 2)
            truths.append((image, category, disc(*place, radius)))
            for _ in range(rng.integers(0, 3)):
                guess = disc(*(place + rng.normal(0, radius / 8, 2)), radius * rng.uniform(0.85, 1.1))
                other = int(rng.integers(1, 4)) if rng.random() < 0.1 else category
                results.append(result(image, guess, round(float(rng.random()), 1), other))
    return write(tmp_path / "truth.json", truths, num_images=8), results


@pytest.mark.parametrize("images", [range(8), [5, 0, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_hotcoco_gives_the_numbers_of_pycocotools(tmp_path: Path, seed: int, images: list[int]) -> None:
    pytest.importorskip("hotcoco", reason="needs the extra evaluation")
    truth, results = noisy(tmp_path, seed)
    fast = coco_scores(truth, results, list(images), engine="hotcoco")
    slow = coco_scores(truth, results, list(images), engine="pycocotools")
    assert fast == pytest.approx(slow, abs=1e-6)
    assert tuple(fast) == METRIC_NAMES
    assert 0.1 < fast["ap"] < 0.9, "a case that could tell"


def test_evaluates_only_the_given_images(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", [(0, 1, disc(50, 50, 20)), (1, 1, disc(50, 50, 20))], num_images=2)
    results = [result(0, disc(50, 50, 20), 0.9)]
    assert coco_scores(truth, results, [0, 1], engine="pycocotools")["ap"] == pytest.approx(51 / 101)
    assert coco_scores(truth, results, [0], engine="pycocotools")["ap"] == pytest.approx(1)


def test_lvis_rules_give_ap_by_frequency(tmp_path: Path) -> None:
    pytest.importorskip("hotcoco", reason="needs the extra evaluation")
    truths = [(0, 1, disc(50, 50, 20)), (0, 2, disc(100, 100, 20)), (0, 3, disc(30, 120, 20))]
    path = write(tmp_path / "truth.json", truths, num_images=1)
    document = json.loads(path.read_text())
    document["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    path.write_text(json.dumps(document))
    results = [result(0, disc(50, 50, 20), 0.9), result(0, disc(100, 104, 20), 0.8, 2)]
    scores = coco_scores(path, results, [0], rules="lvis")
    assert (scores["ap_frequent"], scores["ap_rare"]) == (pytest.approx(1), pytest.approx(0))
    iou = (disc(100, 100, 20) & disc(100, 104, 20)).sum() / (disc(100, 100, 20) | disc(100, 104, 20)).sum()
    assert scores["ap_common"] == pytest.approx(np.mean(iou >= np.linspace(0.5, 0.95, 10)))
    assert scores["ap"] == pytest.approx((1 + scores["ap_common"]) / 3)


def test_boundary_ap_uses_the_minimum_iou(tmp_path: Path) -> None:
    """A shifted disc of radius 45: its IoU would pass thresholds that its boundary's does not."""
    truth, guess = disc(80, 80, 45), disc(80, 84, 45)
    path = write(tmp_path / "truth.json", [(0, 1, truth)], num_images=1)
    iou = (truth & guess).sum() / (truth | guess).sum()
    boundary_value = boundary_iou(truth, guess)
    assert boundary_value < iou - 0.2
    limits = np.linspace(0.5, 0.95, 10)
    plain = coco_scores(path, [result(0, guess, 0.5)], [0], engine="pycocotools")
    assert plain["ap"] == pytest.approx(np.mean(limits <= iou))
    by_boundary = coco_scores(path, [result(0, guess, 0.5)], [0], engine="pycocotools", iou="boundary")
    assert by_boundary["ap"] == pytest.approx(np.mean(limits <= boundary_value))


def test_boundary_ap_never_exceeds_mask_ap(tmp_path: Path) -> None:
    truth, results = noisy(tmp_path, 0)
    plain, by_boundary = (coco_scores(truth, results, range(8), engine="pycocotools", iou=iou) for iou in ("mask", "boundary"))
    assert 0 < by_boundary["ap"] < plain["ap"]


def test_accepts_json_without_iscrowd(tmp_path: Path) -> None:
    path = write(tmp_path / "truth.json", [(0, 1, disc(50, 50, 20))], num_images=1, crowd=None)
    for engine in ("pycocotools", "hotcoco"):
        assert coco_scores(path, [result(0, disc(50, 50, 20), 0.5)], [0], engine=engine)["ap"] == pytest.approx(1)


def test_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "truth.json", [(0, 1, disc(50, 50, 20))], num_images=1)
    for engine in ("pycocotools", "hotcoco"):
        coco_scores(path, [result(0, disc(50, 50, 20), 0.5)], [0], engine=engine)
    assert capfd.readouterr() == ("", "")


def test_rejects_empty_results(tmp_path: Path) -> None:
    path = write(tmp_path / "truth.json", [(0, 1, disc(50, 50, 20))], num_images=1)
    with pytest.raises(ConfigError, match="no results to evaluate"):
        coco_scores(path, [], [0], engine="pycocotools")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"engine": "detectron"}, "engine must be one of hotcoco, pycocotools, got 'detectron'"),
        ({"engine": "pycocotools", "rules": "voc"}, "rules must be one of coco, lvis"),
        ({"engine": "pycocotools", "rules": "lvis"}, "rules=lvis needs engine=hotcoco"),
        ({"engine": "hotcoco", "iou": "boundary"}, "needs engine=pycocotools"),
    ],
)
def test_rejects_unsupported_combinations(choices: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(**choices)


def test_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[evaluation\]'"):
        check_engine("hotcoco")
    check_engine("pycocotools")
