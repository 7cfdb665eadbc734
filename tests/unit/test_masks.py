from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from sam_train import rle as rle_module
from sam_train.errors import ShardError
from sam_train.masks import find_parent_masks, mask_iou, mask_nms, masks_to_boxes_xyxy, nms, stability_score
from sam_train.rle import (
    decode_rle,
    encode_rle,
    mask_to_box_xywh,
    remove_small_regions,
    remove_small_regions_rle,
    rle_area,
    rle_to_box_xywh,
    rle_total_pixels,
    run_lengths_to_rle,
)

any_mask = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def one_pixel(height: int, width: int, y: int, x: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y, x] = True
    return mask


def number(value: int, groups: int) -> str:
    """`value` as rleToString writes a number, in exactly `groups` characters."""
    codes = [(value >> (5 * group)) & 31 | (32 if group < groups - 1 else 0) for group in range(groups)]
    return "".join(chr(code + 48) for code in codes)


@given(any_mask)
@example(np.zeros((3, 4), bool))
@example(np.ones((3, 4), bool))
@example(np.ones((1, 1), bool))
@example(one_pixel(5, 7, 4, 6))
def test_rle_round_trip_agrees_with_pycocotools(mask: np.ndarray) -> None:
    height, width = mask.shape
    rle = encode_rle(mask)
    assert rle["size"] == [height, width]
    assert isinstance(rle["counts"], str)
    assert rle_total_pixels(rle["counts"]) == height * width
    assert int(coco_mask.area(rle)) == mask.sum()
    decoded = decode_rle(rle, height=height, width=width)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)


@given(any_mask)
@example(np.zeros((3, 4), bool))
@example(np.ones((3, 4), bool))
@example(np.ones((1, 1), bool))
def test_run_lengths_give_rle_area_and_box(mask: np.ndarray) -> None:
    """Column-major run lengths give the same RLE, area and box as the pixels."""
    pixels = mask.T.ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    rle = run_lengths_to_rle(runs, *mask.shape)
    assert rle == encode_rle(mask)
    assert rle_area(rle) == mask.sum()
    assert rle_to_box_xywh(rle) == mask_to_box_xywh(mask)


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=30))
def test_rle_total_pixels_is_the_sum_of_the_runs(runs: list[int]) -> None:
    counts = "".join(number(run - runs[i - 2] if i > 2 else run, 6) for i, run in enumerate(runs))
    assert rle_total_pixels(counts) == sum(runs)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=12))
@example("`")
@example("0" * 8 + "1")
def test_any_count_string_decodes_or_raises_shard_error(counts: str) -> None:
    """An accepted string decodes as in pycocotools; others are rejected before pycocotools reads them."""
    try:
        mask = decode_rle({"size": [5, 8], "counts": counts}, height=5, width=8)
    except ShardError:
        assert rle_total_pixels(counts) != 40
    else:
        assert mask.shape == (5, 8)
        assert mask.sum() == coco_mask.area({"size": [5, 8], "counts": counts.encode()})


@pytest.mark.parametrize("size", [[4, 3], [3], [], [3, 5], [0, 0], [3, 4, 1]])
def test_rejects_rle_of_the_wrong_size(size: list[int]) -> None:
    rle = encode_rle(np.ones((3, 4), bool)) | {"size": size}
    with pytest.raises(ShardError, match=r"is not the image's \[3, 4\]") as caught:
        decode_rle(rle, height=3, width=4, shard="a.tar", key="sa_1")
    assert (caught.value.shard, caught.value.key, caught.value.field) == ("a.tar", "sa_1", "segmentation.size")


GOOD_COUNTS = encode_rle(one_pixel(5, 7, 2, 3))["counts"]


@pytest.mark.parametrize(
    "counts",
    [
        "",
        GOOD_COUNTS[:-1],  # a run short
        GOOD_COUNTS + "1",  # a run too many
        number(5, 1) + number(40, 2),  # past the end: C would write behind the array
        GOOD_COUNTS + "\0",
        GOOD_COUNTS[:-1] + " ",
        GOOD_COUNTS[:-1] + "é",
        number(35, 2)[:-1],  # ends inside a number
        number(35, 9),  # a number longer than C's shifts allow
        number(-5, 1) + number(40, 2),  # a negative run that makes the sum right
        number(10, 1) + number(10, 1) + number(5, 1) + number(-15, 2) + number(10, 1),  # negative after the difference
    ],
)
def test_rejects_malformed_counts(counts: str) -> None:
    with pytest.raises(ShardError, match="do not add up") as caught:
        decode_rle({"size": [5, 7], "counts": counts}, height=5, width=7, key="sa_1")
    assert (caught.value.key, caught.value.field) == ("sa_1", "segmentation.counts")


@given(any_mask)
@example(np.zeros((3, 4), bool))
def test_boxes_agree_with_pycocotools(mask: np.ndarray) -> None:
    xywh = mask_to_box_xywh(mask)
    assert xywh == coco_mask.toBbox(encode_rle(mask)).tolist()
    (xyxy,) = masks_to_boxes_xyxy(torch.from_numpy(mask)[None]).tolist()
    assert xyxy == [xywh[0], xywh[1], xywh[0] + xywh[2], xywh[1] + xywh[3]]


def test_box_of_one_pixel_of_none_and_of_no_masks() -> None:
    assert mask_to_box_xywh(one_pixel(5, 7, 4, 6)) == [6.0, 4.0, 1.0, 1.0]
    assert mask_to_box_xywh(np.zeros((5, 7), bool)) == [0.0, 0.0, 0.0, 0.0]
    assert masks_to_boxes_xyxy(torch.zeros(0, 5, 7, dtype=torch.bool)).shape == (0, 4)


@given(st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(lambda hw: st.tuples(arrays(bool, hw), arrays(bool, hw))))
def test_iou_by_loops(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    both = either = 0
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            both += int(a[y, x] and b[y, x])
            either += int(a[y, x] or b[y, x])
    expected = both / either if either else 0.0
    assert mask_iou(torch.from_numpy(a), torch.from_numpy(b)).item() == pytest.approx(expected)


def test_iou_broadcasts_to_a_matrix() -> None:
    masks = torch.stack([torch.from_numpy(one_pixel(3, 3, 0, 0)), torch.ones(3, 3).bool(), torch.zeros(3, 3).bool()])
    matrix = mask_iou(masks[:, None], masks[None])
    assert torch.allclose(matrix, torch.tensor([[1, 1 / 9, 0], [1 / 9, 1, 0], [0, 0, 0]]))


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_stability_score_by_loops(offset: float) -> None:
    logits = torch.randn(4, 6, 5) * 2
    expected = []
    for mask in logits.tolist():
        values = [value for row in mask for value in row]
        inner, outer = (sum(value > cut for value in values) for cut in (offset, -offset))
        expected.append(inner / outer)
    assert torch.allclose(stability_score(logits, offset), torch.tensor(expected))


def test_stability_of_a_sharp_a_soft_and_an_empty_mask() -> None:
    sharp, soft, empty = torch.full((3, 3), 9.0), torch.full((3, 3), 0.5), torch.full((3, 3), -9.0)
    assert stability_score(torch.stack([sharp, soft, empty])).tolist() == [1.0, 0.0, 0.0]
    assert stability_score(sharp).shape == ()


def mask_from_rows(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


REGIONS: list[Any] = [
    pytest.param(("###..", "#.#..", "###.."), 2, ("###..", "###..", "###.."), id="hole of one pixel is filled"),
    pytest.param(("###..", "#.#..", "###.."), 1, ("###..", "#.#..", "###.."), id="hole of just min_area stays"),
    pytest.param(("##...", "##...", "....#"), 2, ("##...", "##...", "....."), id="island of one pixel goes"),
    pytest.param(("##...", "##..#", "....#"), 2, ("##...", "##..#", "....#"), id="island of just min_area stays"),
    pytest.param(("##...", "..#..", "....."), 3, ("##...", "..#..", "....."), id="a corner connects"),
    pytest.param(("#....", ".....", "....#"), 2, None, id="nothing large enough: the whole mask goes"),
    pytest.param((".....", ".....", "....."), 2, None, id="empty mask"),
    pytest.param((".....", ".....", "....."), 99, None, id="empty mask smaller than min_area"),
    pytest.param(("#####", "#####", "#####"), 2, ("#####", "#####", "#####"), id="full mask"),
    pytest.param(("#....", "....."), 0, ("#....", "....."), id="min_area 0 keeps all"),
]


@pytest.mark.parametrize(("before", "min_area", "after"), REGIONS)
def test_remove_small_regions(before: tuple[str, ...], min_area: int, after: tuple[str, ...] | None) -> None:
    mask = mask_from_rows(*before)
    result = remove_small_regions(mask, min_area)
    assert np.array_equal(mask, mask_from_rows(*before)), "the argument was changed"
    if after is None:
        assert result is None
    else:
        assert result is not None
        assert result.dtype == bool
        assert np.array_equal(result, mask_from_rows(*after))


@pytest.fixture(params=["rlemasklib", "without it"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with and without rlemasklib."""
    if request.param == "without it":
        monkeypatch.setattr(rle_module, "rlemasklib_or_none", lambda: None)
    else:
        pytest.importorskip("rlemasklib", reason="rlemasklib has no wheel for this platform")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("before", "min_area", "after"), REGIONS)
def test_remove_small_regions_rle(before: tuple[str, ...], min_area: int, after: tuple[str, ...] | None) -> None:
    assert remove_small_regions_rle(encode_rle(mask_from_rows(*before)), min_area) == (
        None if after is None else encode_rle(mask_from_rows(*after))
    )


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("keep_largest", [False, True])
@pytest.mark.parametrize("density", [0.2, 0.45, 0.6, 0.9])
def test_rle_and_mask_lose_the_same_small_regions(density: float, keep_largest: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((17, 23)) < density
        for min_area in (2, 5, 20, 500):
            expected = remove_small_regions(mask, min_area, keep_largest=keep_largest)
            found = remove_small_regions_rle(encode_rle(mask), min_area, keep_largest=keep_largest)
            if expected is None or found is None:
                assert found is None
                assert expected is None
            elif keep_largest and rle_area(found) < min_area:  # the largest of several as large: either will do
                assert rle_area(found) == expected.sum()
            else:
                assert found == encode_rle(expected)


@pytest.mark.parametrize(
    ("before", "min_area", "after"),
    [
        pytest.param(("##...", "....#", "#...."), 5, ("##...", ".....", "....."), id="the largest of small islands stays"),
        pytest.param(("###..", "#.#..", "###.#"), 9, ("#####", "#####", "#####"), id="first holes are filled, then islands go"),
        pytest.param((".....", "....."), 5, None, id="an empty mask has none"),
    ],
)
@pytest.mark.usefixtures("library")
def test_keep_largest_keeps_the_largest_component(before: tuple[str, ...], min_area: int, after: tuple[str, ...] | None) -> None:
    expected = None if after is None else mask_from_rows(*after)
    result = remove_small_regions(mask_from_rows(*before), min_area, keep_largest=True)
    assert (result is None) == (expected is None)
    assert result is None or np.array_equal(result, expected)
    rle = remove_small_regions_rle(encode_rle(mask_from_rows(*before)), min_area, keep_largest=True)
    assert rle == (None if expected is None else encode_rle(expected))


def test_warns_once_without_rlemasklib(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "rlemasklib", None)
    rle_module.rlemasklib_or_none.cache_clear()
    try:
        rle = encode_rle(mask_from_rows("###..", "#.#.#", "###.."))
        assert [remove_small_regions_rle(rle, 2), remove_small_regions_rle(rle, 2)] == [
            encode_rle(mask_from_rows("###..", "###..", "###.."))
        ] * 2
    finally:
        rle_module.rlemasklib_or_none.cache_clear()
    assert len([r for r in caplog.records if "rlemasklib is not installed" in r.message]) == 1


def plain_nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return width * height / (areas - width * height)

    kept: list[int] = []
    for candidate in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[candidate], boxes[other]) <= threshold for other in kept):
            kept.append(candidate)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("num_boxes", [1, 2, 40])
def test_nms_against_a_plain_loop(threshold: float, num_boxes: int) -> None:
    corners = torch.randint(0, 20, (num_boxes, 2)).float()
    boxes = torch.cat([corners, corners + torch.randint(1, 12, (num_boxes, 2))], 1)
    scores = torch.randint(-3, 4, (num_boxes,)).float()  # with ties, and below zero as logits may be
    kept = nms(boxes, scores, threshold)
    assert kept.dtype == torch.long
    assert kept.tolist() == plain_nms(boxes.tolist(), scores.tolist(), threshold)


def test_nms_keeps_its_argument_and_accepts_no_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    assert nms(boxes, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1]
    assert boxes.tolist() == [[0.0, 0.0, 4.0, 4.0]] * 2
    empty = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (empty.shape, empty.dtype) == ((0,), torch.long)


@pytest.mark.parametrize(("height", "width"), [(-4, -6), (0, 0), (1 << 15, 1 << 15), (1 << 40, 1 << 40)])
def test_rejects_rle_of_an_invalid_size(height: int, width: int) -> None:
    with pytest.raises(ShardError) as caught:
        decode_rle({"size": [height, width], "counts": "h0"}, height=height, width=width)
    assert caught.value.field == "segmentation.size"


def test_boxes_without_an_area_overlap_nothing() -> None:
    """With inclusive corners, the box of a one-pixel mask has no area."""
    boxes = torch.tensor([[1.0, 1, 1, 1], [9, 9, 9, 9], [1, 1, 1, 1], [0, 0, 5, 5]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_mask_nms_against_a_plain_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    masks = torch.zeros(40, 30, 30, dtype=torch.bool)
    for mask in masks:
        x, y = rng.integers(0, 20, 2)
        width, height = rng.integers(2, 14, 2)
        mask[y : y + height, x : x + width] = True
        mask[y + 1, x : x + width] = False
    scores = torch.from_numpy(rng.integers(0, 9, 40)).float()
    rles = [encode_rle(mask.numpy()) for mask in masks]
    ious = mask_iou(masks[:, None], masks[None])
    expected: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(ious[i, j] <= threshold for j in expected):
            expected.append(i)
    assert mask_nms(rles, scores, threshold).tolist() == expected
    assert len(expected) < 40 or threshold == 0.9
    assert mask_nms([], torch.zeros(0), threshold).tolist() == []


def test_parent_masks_equal_plain_loops() -> None:
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(30):
        mask = np.zeros((30, 30), bool)
        (x, y), (width, height) = rng.integers(0, 20, 2), rng.integers(2, 25, 2)
        mask[y : y + height, x : x + width] = True
        masks.append(mask)
    expected: list[int | None] = []
    for mask in masks:
        larger = [j for j, m in enumerate(masks) if m.sum() > mask.sum() and (m & mask).sum() >= 0.8 * mask.sum()]
        expected.append(min(larger, key=lambda j: (masks[j].sum(), j)) if larger else None)
    assert find_parent_masks([encode_rle(m) for m in masks], 0.8) == expected
    assert 5 < sum(p is not None for p in expected) < 30


def test_the_same_mask_twice_is_not_its_own_parent() -> None:
    rle = encode_rle(np.ones((4, 4), bool))
    assert find_parent_masks([rle, rle], 0.9) == [None, None]
    assert find_parent_masks([], 0.9) == []
