"""Evaluation metrics compared with independent implementations, on real images and annotations."""

from __future__ import annotations

import contextlib
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.io import loadmat
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.morphology import thin

from sam_train.evaluation.edges import segment_boundaries
from sam_train.metrics.coco_scores import coco_scores
from sam_train.metrics.edge_scores import edge_counts, edge_scores
from sam_train.metrics.recall import AREAS, average_recall, count_recalled_objects, proposal_ious
from sam_train.shards.importers.bsds500 import read_bsds_segmentations

MAX_DISTANCE = 0.0075


@pytest.fixture(scope="module")
def bsds(shared_dir: Path) -> Path:
    return shared_dir / "data" / "bsds500"


def test_lines_between_segments_are_the_files_own(bsds: Path) -> None:
    for path in sorted((bsds / "groundTruth" / "val").glob("*.mat"))[::10]:
        theirs = [person["Boundaries"][0, 0].astype(bool) for person in loadmat(path)["groundTruth"].ravel()]
        ours = [segment_boundaries(ids) for ids in read_bsds_segmentations(path)]
        assert len(ours) == len(theirs) >= 4
        for mine, own in zip(ours, theirs, strict=True):
            assert np.array_equal(mine, own)


def windows(bsds: Path) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Return crops of three images: gradient strength as edge map, and the edges of five annotators."""
    found = []
    for path in sorted((bsds / "images" / "val").glob("*.jpg"))[5:8]:
        gray = cv2.GaussianBlur(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (0, 0), 2).astype(np.float64)
        strength = np.hypot(cv2.Sobel(gray, cv2.CV_64F, 1, 0), cv2.Sobel(gray, cv2.CV_64F, 0, 1))
        people = [segment_boundaries(ids) for ids in read_bsds_segmentations(bsds / "groundTruth" / "val" / f"{path.stem}.mat")]
        window = np.s_[100:220, 150:300]
        found.append((strength[window] / strength[window].max(), [lines[window] for lines in people]))
    return found


def counts_by_another_way(strength: np.ndarray, people: list[np.ndarray], cuts: list[float], limit: float) -> np.ndarray:
    """scikit-image's thinning; every distance, and a dense assignment of hundredths of pixels."""
    columns = []
    for cut in cuts:
        lines = thin(strength >= cut)
        found = np.argwhere(lines)
        right, recalled, true = set(), 0, 0
        for person in people:
            truth = np.argwhere(person)
            apart = cdist(found, truth)
            cost = np.where(apart <= limit, np.rint(100 * apart), 1e7)
            rows, partners = linear_sum_assignment(cost)
            pairs = [(row, partner) for row, partner in zip(rows, partners, strict=True) if cost[row, partner] < 1e7]
            right |= {row for row, _ in pairs}
            recalled += len(pairs)
            true += len(truth)
        columns.append((recalled, true, len(right), len(found)))
    return np.array(columns).T


def scores_by_another_way(counts: np.ndarray, cuts: list[float]) -> dict[str, float]:
    """Arbelaez et al.'s four figures in plain loops, after the words of the benchmark's README and edgesEvalDir."""

    def rates(recalled: float, true: float, right: float, found: float) -> tuple[float, float, float]:
        recall, precision = recalled / true if true else 0.0, right / found if found else 0.0
        return recall, precision, 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    together = [rates(*counts[:, :, k].sum(0)) for k in range(len(cuts))]
    best = 0.0
    for (recall, precision, _), (next_recall, next_precision, _) in pairwise(together):
        for step in range(100):
            share = step / 99
            r, p = recall + share * (next_recall - recall), precision + share * (next_precision - precision)
            best = max(best, 2 * p * r / (p + r) if p + r else 0.0)
    chosen = np.zeros(4)
    for image in counts:
        f = [rates(*image[:, k])[2] for k in range(len(cuts))]
        chosen += image[:, f.index(max(f))]
    curve: dict[float, float] = {}
    for recall, precision, _ in together:
        curve.setdefault(recall, precision)
    recalls = sorted(curve)
    area = 0.0
    for step in range(101):
        at = step / 100
        for left, right in pairwise(recalls):
            if left <= at <= right and (at < right or right == recalls[-1]):
                area += curve[left] + (at - left) / (right - left) * (curve[right] - curve[left])
                break
    by_precision: dict[float, float] = {}
    for recall in reversed(recalls):
        by_precision.setdefault(curve[recall], recall)
    precisions = sorted(by_precision)
    half = max(0.5, precisions[0])
    r50 = 0.0
    for low, high in pairwise(precisions):
        if low <= half <= high:
            r50 = by_precision[low] + (half - low) / (high - low) * (by_precision[high] - by_precision[low])
            break
    return {"ods": best, "ois": rates(*chosen)[2], "ap": area / 100, "r50": r50}


def test_edge_counts_and_scores_equal_another_implementation(bsds: Path) -> None:
    cuts = [k / 12 for k in range(1, 12)]
    ours, theirs = [], []
    for strength, people in windows(bsds):
        limit = MAX_DISTANCE * float(np.hypot(321, 481))
        share = limit / float(np.hypot(*strength.shape))
        ours.append(edge_counts(strength, people, num_thresholds=11, max_distance=share))
        theirs.append(counts_by_another_way(strength, people, cuts, limit))
        # True and found pixels, and how many find a partner, are the same for any assignment of most pairs.
        assert np.array_equal(ours[-1][[0, 1, 3]], theirs[-1][[0, 1, 3]])
        # Which pixels these are is not, where assignments are equally good: then the union over people may differ by a few.
        assert np.abs(ours[-1][2] - theirs[-1][2]).max() <= 0.01 * theirs[-1][3].max()
    found = edge_scores(np.array(ours))
    expected = scores_by_another_way(np.array(ours), cuts)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    other = scores_by_another_way(np.array(theirs), cuts)
    assert {name: found[name] for name in other} == pytest.approx(other, abs=2e-3)
    assert 0.3 < found["ods"] < 0.9


@pytest.fixture(scope="module")
def lvis(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Return LVIS annotations of forty images, and results: its masks slightly shifted, some with wrong categories."""
    document = json.loads((shared_dir / "data" / "lvis_val_100" / "lvis_val_100.json").read_bytes())
    document["images"] = document["images"][:40]
    taken = {image["id"] for image in document["images"]}
    document["annotations"] = [annotation for annotation in document["annotations"] if annotation["image_id"] in taken]
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    rng = np.random.default_rng(0)
    categories = [annotation["category_id"] for annotation in document["annotations"]]
    results = []
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 0
        rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]]))
        annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        mask = coco_mask.decode(rle)
        for _ in range(rng.integers(0, 3)):
            moved = coco_mask.encode(np.asfortranarray(np.roll(mask, tuple(rng.integers(-4, 5, 2)), (0, 1))))
            entry = {"image_id": annotation["image_id"], "score": round(float(rng.random()), 2)}
            entry["category_id"] = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
            results.append({**entry, "segmentation": {"size": list(moved["size"]), "counts": moved["counts"].decode()}})
    path = tmp_path_factory.mktemp("lvis") / "truth.json"
    path.write_text(json.dumps(document))
    return path, document, results


def test_ap_equals_pycocotools(lvis: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    pytest.importorskip("hotcoco", reason="needs the extra evaluation")
    path, document, results = lvis
    images = [image["id"] for image in document["images"]]
    fast, slow = (coco_scores(path, results, images, engine=engine) for engine in ("hotcoco", "pycocotools"))
    assert fast == pytest.approx(slow, abs=1e-6)
    assert 0.1 < slow["ap"] < 0.9


def test_recall_equals_pycocotools_for_each_frequency(lvis: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    _, document, results = lvis
    frequency = {category["id"]: category["frequency"] for category in document["categories"]}
    for wanted in ("fcr", "f", "c", "r"):
        truths = [a for a in document["annotations"] if frequency[a["category_id"]] in wanted]
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = {**document, "annotations": truths}
            known.createIndex()
            evaluation = COCOeval(known, known.loadRes([dict(r) for r in results]), "segm")
            evaluation.params.useCats, evaluation.params.maxDets = 0, [1000]
            evaluation.evaluate()
            evaluation.accumulate()
        for index, name in enumerate(("all", *AREAS)):
            least, most = AREAS.get(name, (0, 1e10))
            asked = [a for a in truths if least <= a["area"] <= most]
            matched = []
            for image in document["images"]:
                here = [a["segmentation"] for a in asked if a["image_id"] == image["id"]]
                best_first = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda r: -r["score"])
                matched.append(count_recalled_objects(proposal_ious([r["segmentation"] for r in best_first], here)).tolist())
            theirs = evaluation.eval["recall"][:, 0, index, 0].mean()
            assert average_recall(matched, len(asked)) == pytest.approx(max(theirs, 0), abs=1e-9), (wanted, name)
