"""Masks from boxes: the prompts, the second pass, and AP of a model with known predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_mask_record, make_sample
from fake_sam import SIZE, Candidates, ScriptedSam, points_of

from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.instances import DetectedBox, InstanceProtocol, best_boxes, read_boxes
from sam_train.inference import Predictor
from sam_train.rle import encode_rle
from sam_train.shards import write_shard


def in_box(left: float, top: float, right: float, bottom: float) -> torch.Tensor:
    """Pixels from the first to the last inside."""
    index = torch.arange(SIZE)
    return ((index >= top) & (index <= bottom))[:, None] & ((index >= left) & (index <= right))


def fills_the_box(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
    """Return three masks of which the highest-scored lacks the right half, or the single mask of the whole box."""
    (left, top, first), (right, bottom, second) = points
    assert (first, second) == (2, 3)
    half = in_box(left, top, (left + right) / 2, bottom)
    return (
        [(half, 0.9), (in_box(left, top, right, bottom), 0.5), (half, 0.1)]
        if multimask
        else [(in_box(*points[0][:2], *points[1][:2]), 0.7)]
    )


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Any]:
    """Two images of ids 0 and 1, each with two boxes as masks, in shards and in a JSON; a detector that found them all."""
    boxes = [[4.0, 6.0, 20.0, 30.0], [30.0, 30.0, 30.0, 20.0]]
    masks = [in_box(x, y, x + w - 1, y + h - 1).numpy() for x, y, w, h in boxes]
    samples = []
    annotations: list[dict[str, Any]] = []
    for image in (0, 1):
        record, jpeg = make_sample(image, height=SIZE, width=SIZE)
        samples.append((replace(record, masks=[make_mask_record(m, mask_id=n) for n, m in enumerate(masks)]), jpeg))
        for box, mask in zip(boxes, masks, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": 1 + len(annotations) % 2, "bbox": box}
            annotations.append({**entry, "area": int(mask.sum()), "iscrowd": 0, "segmentation": encode_rle(mask)})
    write_shard(tmp_path / "shards" / "sa_000000.tar", samples)
    images = [{"id": i, "height": SIZE, "width": SIZE} for i in (0, 1)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    keys = ("image_id", "category_id", "bbox")
    detections = [{**{key: a[key] for key in keys}, "score": 0.5 + a["id"] / 10} for a in annotations]
    (tmp_path / "boxes.json").write_text(json.dumps(detections))
    return {
        "shards": str(tmp_path / "shards"),
        "choices": {"annotations": str(tmp_path / "truth.json"), "boxes": str(tmp_path / "boxes.json"), "engine": "pycocotools"},
        "boxes": boxes,
        "folder": tmp_path,
    }


def measured(world: dict[str, Any], model: ScriptedSam, **choices: Any) -> dict[str, float]:
    protocol = InstanceProtocol(**world["choices"] | choices)
    predictor = Predictor(model)
    images = protocol.list_images(world["shards"])
    return dict(protocol.summarize([protocol.measure(predictor, image) for image in images]).measures)


def test_feeds_back_the_highest_scored_mask_with_its_box(world: dict[str, Any]) -> None:
    model = ScriptedSam(fills_the_box)
    found = measured(world, model)
    assert found["ap"] == pytest.approx(1)
    assert (found["num_results"], found["num_images"]) == (4, 2)
    assert [multimask for _, multimask in model.calls] == [True, False, True, False]
    (first, _), (second, _) = model.calls[:2]
    # Best score first; corners are the first and the last pixel inside.
    expected = [[[x, y], [x + w - 1, y + h - 1]] for x, y, w, h in reversed(world["boxes"])]
    assert first.points_xy.tolist() == second.points_xy.tolist() == expected
    assert first.mask_logits is None
    assert second.mask_logits is not None
    halves = torch.stack([fills_the_box(points, True)[0][0] for points in points_of(first)])
    assert torch.equal(second.mask_logits[:, 0] > 0, halves)


def test_without_refine_the_first_prediction_is_used(world: dict[str, Any]) -> None:
    model = ScriptedSam(fills_the_box)
    found = measured(world, model, refine=False)
    assert [multimask for _, multimask in model.calls] == [True, True]
    assert found["ap"] == pytest.approx(0.1), "half of each box: right at one of ten thresholds"


def test_uses_the_best_boxes_in_batches(world: dict[str, Any]) -> None:
    model = ScriptedSam(fills_the_box)
    assert measured(world, model, boxes_per_batch=1)["ap"] == pytest.approx(1)
    assert [len(prompts) for prompts, _ in model.calls] == [1] * 8
    assert measured(world, ScriptedSam(fills_the_box), max_boxes=1)["num_results"] == 2


def test_writes_results_in_cocos_format(world: dict[str, Any]) -> None:
    path = world["folder"] / "results.json"
    measured(world, ScriptedSam(fills_the_box), results=str(path))
    results = json.loads(path.read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        (0, 2, 0.7),
        (0, 1, 0.6),
        (1, 2, 0.9),
        (1, 1, 0.8),
    ]
    x, y, w, h = world["boxes"][1]
    assert results[0]["segmentation"] == encode_rle(in_box(x, y, x + w - 1, y + h - 1).numpy())


def test_image_without_boxes_counts(world: dict[str, Any]) -> None:
    path = Path(world["choices"]["boxes"])
    path.write_text(json.dumps([entry for entry in json.loads(path.read_text()) if entry["image_id"] == 0]))
    found = measured(world, ScriptedSam(fills_the_box))
    assert found["ap"] == pytest.approx(51 / 101)
    assert (found["num_results"], found["num_images"]) == (2, 2)


def test_box_thinner_than_a_pixel_has_one_pixel(world: dict[str, Any]) -> None:
    predictor = Predictor(ScriptedSam(fills_the_box))
    predictor.set_image(np.zeros((SIZE, SIZE, 3), np.uint8))
    (mask,) = InstanceProtocol(engine="pycocotools").masks(predictor, torch.tensor([[5.0, 7.0, 0.0, 3.0]]))
    assert mask.nonzero().tolist() == [[7, 5], [8, 5], [9, 5]]


def test_equal_scores_keep_their_order() -> None:
    boxes = [DetectedBox((0, 0, 1, 1), n, score) for n, score in enumerate((0.5, 0.9, 0.5, 0.9))]
    assert [box.category_id for box in best_boxes(boxes, 3)] == [1, 3, 0]


GOOD = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5.5], "score": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not valid JSON"),
        ('{"annotations": []}', "expected COCO's results format, a list of objects"),
        ("[3]", "entry 0: expected an object, got 3"),
        ([GOOD, {**GOOD, "image_id": "x"}], "entry 1: expected an integer as 'image_id'"),
        ([{**GOOD, "category_id": None}], "entry 0: expected an integer as 'category_id'"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "four numbers x, y, width, height as 'bbox'"),
        ([{**GOOD, "bbox": [1, 2, 3, float("nan")]}], "four numbers x, y, width, height as 'bbox'"),
        ([{**GOOD, "bbox": [1, 2, -3, 4]}], "width and height of at least 0 in 'bbox'"),
        ([{**GOOD, "score": "high"}], "expected a number as 'score', got high"),
        ([{**GOOD, "score": float("inf")}], "expected a number as 'score'"),
    ],
)
def test_rejects_files_that_are_not_detections(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ShardError, match=message) as error:
        read_boxes(path)
    assert str(path) in str(error.value)


def test_groups_boxes_by_image(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "image_id": 7}, {**GOOD, "score": 0.25}]))
    first, second = (DetectedBox((0, 0, 5, 5.5), 2, score) for score in (1, 0.25))
    assert read_boxes(path) == {1: [first, second], 7: [first]}


def test_rejects_files_of_other_images(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, edit: Callable[[dict[str, Any]], Any], name: str) -> None:
        path = Path(world["choices"][name])
        before = path.read_text()
        path.write_text(json.dumps(edit(json.loads(before))))
        with pytest.raises(ConfigError, match=message):
            InstanceProtocol(**world["choices"]).list_images(world["shards"])
        path.write_text(before)

    refused("1 images of the shards are not in", lambda d: {**d, "images": d["images"][:1]}, "annotations")
    refused("has no box for any image of the shards", lambda d: [{**entry, "image_id": 9} for entry in d], "boxes")
    with pytest.raises(ConfigError, match=r"give protocol\.annotations=INSTANCES\.json and protocol\.boxes="):
        InstanceProtocol(engine="pycocotools").list_images(world["shards"])
    with pytest.raises(ConfigError, match="rules=lvis needs engine=hotcoco"):
        InstanceProtocol(engine="pycocotools", rules="lvis")
