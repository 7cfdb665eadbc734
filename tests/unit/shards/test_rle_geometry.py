"""Measures of an RLE equal those of its pixels, and both decoders accept the same strings."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_train.errors import ShardError
from sam_train.rle import decode_rle, encode_rle, mask_to_box_xywh, rle_total_pixels
from sam_train.shards.maintenance.rle_geometry import rle_runs, rle_to_column_runs


@pytest.mark.parametrize("seed", range(40))
def test_measures_equal_those_of_the_pixels(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 40, 2).tolist()
    mask = random.random((height, width)) < random.choice([0.02, 0.5, 0.98])
    segments = rle_to_column_runs(encode_rle(mask), height=height, width=width)
    assert segments.area() == mask.sum()
    assert segments.box_xywh() == mask_to_box_xywh(mask)
    if mask.any():
        rows, columns = np.nonzero(mask)
        assert segments.centre_xy() == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))
        corners = np.concatenate([np.stack([columns + x, rows + y], 1) for x in (0, 1) for y in (0, 1)]).astype(np.int32)
        assert segments.hull_area() == pytest.approx(cv2.contourArea(cv2.convexHull(corners)))


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks(value: bool) -> None:
    segments = rle_to_column_runs(encode_rle(np.full((5, 7), value)), height=5, width=7)
    assert (segments.area(), segments.hull_area()) == (35 * value, 35.0 * value)
    assert segments.box_xywh() == ([0, 0, 7, 5] if value else [0, 0, 0, 0])


@settings(max_examples=1500, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_accepts_the_same_strings_as_decode_rle(counts: str) -> None:
    runs = rle_runs(counts)
    assert (-1 if runs is None else runs.sum()) == rle_total_pixels(counts)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=14))
def test_ignores_runs_of_zero_pixels(runs: list[int]) -> None:
    """No encoder writes such runs, and toBbox of pycocotools handles them incorrectly."""
    from pycocotools import mask as coco_mask

    pixels = sum(runs)
    for height in {h for h in range(1, pixels + 1) if pixels % h == 0}:
        size = [height, pixels // height]
        rle = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)
        rle = {"size": size, "counts": rle["counts"].decode()}
        mask = decode_rle(rle, height=size[0], width=size[1])
        segments = rle_to_column_runs(rle, height=size[0], width=size[1])
        assert (segments.area(), segments.box_xywh()) == (mask.sum(), mask_to_box_xywh(mask))


@pytest.mark.parametrize("counts", ["", "0", "~", "ä", "\ud800", "00000000000", "1" * 99, "oooooooo0"])
def test_rejects_an_rle_of_another_size(counts: str) -> None:
    with pytest.raises(ShardError, match="RLE") as caught:
        rle_to_column_runs({"size": [3, 4], "counts": counts}, height=3, width=4, field="here")
    assert caught.value.field == "here.counts"
    with pytest.raises(ShardError, match=r"\[3, 4\] is not the image's \[4, 3\]"):
        rle_to_column_runs({"size": [3, 4], "counts": counts}, height=4, width=3)
