"""Average recall, equal to pycocotools'."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_train.metrics.recall import AREAS, average_recall, count_recalled_objects, proposal_ious
from sam_train.rle import encode_rle


def blob(rng: np.random.Generator, *, size: int = 128) -> np.ndarray:
    """A rectangle from a few pixels to half the image."""
    height, width = (int(side) for side in np.exp(rng.uniform(1, np.log(size * 0.9), 2)))
    row, column = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    mask = np.zeros((size, size), bool)
    mask[row : row + height, column : column + width] = True
    return mask


def shaken(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same, moved by as much as lets IoU lie anywhere between 0.4 and 1."""
    side = np.sqrt(mask.sum())
    moved = np.roll(mask, tuple(rng.integers(-1 - int(side / 5), 2 + int(side / 5), 2)), (0, 1))
    return moved if rng.random() < 0.8 else mask


def scenes(seed: int) -> list[tuple[list[np.ndarray], list[tuple[np.ndarray, float]]]]:
    """Return for each image its ground-truth masks and scored proposals, many with equal scores."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(6):
        truths = [blob(rng) for _ in range(rng.integers(0, 9))]
        proposals = [shaken(truth, rng) for truth in truths for _ in range(rng.integers(0, 4))] + [blob(rng) for _ in range(5)]
        scores = np.round(rng.random(len(proposals)), 1).tolist()
        found.append((truths, list(zip(proposals, scores, strict=True))))
    return found


def by_pycocotools(found: list[tuple[list[np.ndarray], list[tuple[np.ndarray, float]]]], max_proposals: int) -> dict[str, float]:
    images = [{"id": i, "height": 128, "width": 128} for i in range(len(found))]
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, (masks, proposals) in enumerate(found):
        for mask in masks:
            area = int(mask.sum())
            entry = {"image_id": i, "category_id": 1 + len(truths) % 3, "iscrowd": 0, "area": area, "bbox": [0, 0, 1, 1]}
            truths.append({**entry, "id": len(truths) + 1, "segmentation": encode_rle(mask)})
        for mask, score in proposals:
            results.append({"image_id": i, "category_id": 1, "score": score, "segmentation": encode_rle(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": truths, "categories": [{"id": c} for c in (1, 2, 3)]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [max_proposals]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, :, 0]
    return {name: float(recall[:, i].mean()) for i, name in enumerate(("all", *AREAS))}


@pytest.mark.parametrize("max_proposals", [1000, 7])
@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed: int, max_proposals: int) -> None:
    found = scenes(seed)
    sums: dict[str, tuple[int, list[list[int]]]] = {name: (0, []) for name in ("all", *AREAS)}
    for truths, proposals in found:
        best_first = sorted(proposals, key=lambda proposal: -proposal[1])[:max_proposals]
        ious = proposal_ious([encode_rle(m) for m, _ in best_first], [encode_rle(m) for m in truths])
        for name, (count, matched) in sums.items():
            least, most = AREAS.get(name, (0, 1e10))
            asked = [i for i, mask in enumerate(truths) if least <= mask.sum() <= most]
            sums[name] = (count + len(asked), [*matched, count_recalled_objects(ious[:, asked]).tolist()])
    ours = {name: average_recall(matched, count) for name, (count, matched) in sums.items()}
    theirs = by_pycocotools(found, max_proposals)
    for name, value in theirs.items():
        assert ours[name] == (0 if value == -1 else pytest.approx(value, abs=1e-12)), name
    assert 0.2 < ours["all"] < 0.95, "a case that could tell"


def test_a_proposal_takes_one_object_and_the_better_ranked_first() -> None:
    # The first proposal lies on both objects, better on the second; the second one only on the second.
    ious = np.array([[0.6, 0.72], [0.0, 0.9]])
    assert count_recalled_objects(ious).tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert count_recalled_objects(ious[::-1]).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 0]


def test_a_subset_of_objects_is_matched_separately() -> None:
    ious = np.array([[0.6, 0.72], [0.0, 0.9]])
    assert count_recalled_objects(ious[:, [0]]).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("proposals", "truths"), [(0, 3), (3, 0), (0, 0)])
def test_empty_proposals_or_objects_have_no_matches(proposals: int, truths: int) -> None:
    rng = np.random.default_rng(0)
    masks = [encode_rle(blob(rng)) for _ in range(3)]
    assert count_recalled_objects(proposal_ious(masks[:proposals], masks[:truths])).tolist() == [0] * 10


def test_recall_is_zero_without_objects() -> None:
    assert average_recall([], 0) == 0
    assert average_recall([[0] * 10, [0] * 10], 0) == 0
