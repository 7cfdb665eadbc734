"""Number of clicks: a reference implementation of RITM's clicker, and models that need a known number of clicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import make_mask_record, make_sample
from fake_sam import SIZE, Candidates, ScriptedSam
from torch import Tensor

from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.clicks_needed import ClicksNeededProtocol, iou_outside_void, next_click
from sam_train.inference import Predictor
from sam_train.shards import write_shard

Click = tuple[int, int, bool]


def ritm_click(answer: np.ndarray, target: np.ndarray, void: np.ndarray, before: list[Click]) -> Click:
    """Return the click of RITM's `Clicker._get_next_click`, with distances by brute force."""

    def depth(region: np.ndarray) -> np.ndarray:
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        found = np.zeros(region.shape)
        for row, column in np.argwhere(region):
            found[row, column] = np.sqrt(((outside - (row + 1, column + 1)) ** 2).sum(1).min())
        for column, row, _ in before:
            found[row, column] = 0
        return found

    missed, false = depth(target & ~answer & ~void), depth(~target & answer & ~void)
    is_positive = missed.max() > false.max()
    row, column = np.argwhere((missed if is_positive else false) == (missed if is_positive else false).max())[0]
    return int(column), int(row), bool(is_positive)


@pytest.mark.parametrize("seed", range(12))
def test_clicks_equal_ritms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = [cv2.GaussianBlur(rng.random((24, 31)), (0, 0), 3) for _ in range(3)]
    target, answer = (blob > np.median(blob) for blob in blobs[:2])
    void = blobs[2] > np.quantile(blobs[2], 0.9)
    if seed == 0:
        answer = np.zeros_like(target)
    before: list[Click] = []
    for _ in range(5):
        expected = ritm_click(answer, target, void, before)
        assert next_click(answer, target, void, before) == expected
        before.append(expected)


def test_tie_gives_a_background_click() -> None:
    target, answer, void = np.zeros((3, 9, 20), bool)
    target[3:6, 2:5], answer[3:6, 12:15] = True, True
    assert next_click(answer, target, void, []) == (13, 4, False)


def test_iou_excludes_void() -> None:
    answer, target, void = np.zeros((3, 4, 4), bool)
    answer[0], target[:2], void[1] = True, True, True
    assert iou_outside_void(answer, target, void) == 1
    assert iou_outside_void(answer, target, np.zeros((4, 4), bool)) == 0.5


def rectangle(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


TARGETS = [rectangle(4, 4, 24, 24), rectangle(30, 30, 60, 50)]


def slow_model(clicks: list[int]) -> Callable[[list[tuple[float, float, int]], bool], Candidates]:
    """Return a model that predicts half of target n, and all of it after clicks[n] clicks; of three masks the first are empty."""

    def answer(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
        x, y, label = points[0]
        assert label == 1, "the first click is on the target"
        n = next(n for n, target in enumerate(TARGETS) if target[int(y), int(x)])
        half = TARGETS[n] & (torch.arange(SIZE) < 14 if n == 0 else torch.arange(SIZE) < 40)
        mask = TARGETS[n] if len(points) >= clicks[n] else half
        empty = torch.zeros_like(mask)
        return [(empty, 0.1), (mask, 0.9), (empty, 0.2)] if multimask else [(mask, 0.5)]

    return answer


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write one image and mask per target with GrabCut's gray values: 64 is background, 128 void."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for n, target in enumerate(TARGETS):
        cv2.imwrite(str(images / f"pic{n}.jpg"), rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8))
        values = np.where(target.numpy(), 255, 64).astype(np.uint8)
        values[:, 62:] = 128
        cv2.imwrite(str(masks / f"pic{n}.bmp"), values)
    return images, masks


def measured(protocol: ClicksNeededProtocol, model: ScriptedSam, shards: str | None = None) -> dict[str, float]:
    predictor = Predictor(model)
    images = protocol.list_images(shards)
    return dict(protocol.summarize([protocol.measure(predictor, image) for image in images]).measures)


@pytest.mark.parametrize(("clicks", "noc", "never"), [([1, 1], 1, 0), ([3, 7], 5, 0), ([2, 99], 11, 1), ([99, 99], 20, 2)])
def test_noc_of_models_with_known_numbers_of_clicks(
    folders: tuple[Path, Path], clicks: list[int], noc: float, never: int
) -> None:
    protocol = ClicksNeededProtocol(images=str(folders[0]), masks=str(folders[1]))
    found = measured(protocol, ScriptedSam(slow_model(clicks)))
    assert found["noc_at_85"] == found["noc_at_90"] == noc
    assert found["nof_at_85"] == found["nof_at_90"] == never
    assert (found["num_masks"], found["num_images"]) == (2, 2)
    assert found["miou_at_1"] == pytest.approx(1 if clicks == [1, 1] else 0.5)


def test_feeds_back_logits_and_uses_three_masks_only_first(folders: tuple[Path, Path]) -> None:
    model = ScriptedSam(slow_model([3, 1]))
    measured(ClicksNeededProtocol(images=str(folders[0]), masks=str(folders[1])), model)
    assert [multimask for _, multimask in model.calls] == [True, False, False, True]
    first, second, third, _ = (prompts for prompts, _ in model.calls)
    assert first.mask_logits is None
    half = TARGETS[0] & (torch.arange(SIZE) < 14)
    for prompts in (second, third):
        assert prompts.mask_logits is not None
        assert torch.equal(prompts.mask_logits[0, 0] > 0, half)
    assert third.points_xy.shape == (1, 4, 2), "three clicks and the padding"
    x, y = second.points_xy[0, 1].long().tolist()
    assert TARGETS[0][y, x]
    assert not half[y, x], "where it was wrong"
    assert second.point_labels[0].tolist() == [1, 1, -1]


def test_masks_of_shards_are_predicted_together(tmp_path: Path) -> None:
    record, jpeg = make_sample(0, height=SIZE, width=SIZE)
    records = [make_mask_record(target.numpy(), mask_id=n) for n, target in enumerate([*TARGETS, rectangle(0, 0, 3, 3)])]
    write_shard(tmp_path / "sa_000000.tar", [(replace(record, masks=records), jpeg), make_sample(1, num_masks=0)])
    model = ScriptedSam(slow_model([2, 4]))
    found = measured(ClicksNeededProtocol(), model, str(tmp_path))
    assert (found["noc_at_85"], found["num_masks"], found["num_images"]) == (3, 2, 2), "9 pixels are too few"
    assert [len(prompts) for prompts, _ in model.calls] == [2, 2, 1, 1], "a finished mask gets no more clicks"


def test_without_void_value_all_nonzero_pixels_are_the_target(tmp_path: Path) -> None:
    for folder in ("img", "gt"):
        (tmp_path / folder).mkdir()
    colour = np.zeros((SIZE, SIZE, 3), np.uint8)
    colour[4:24, 4:24] = (0, 0, 128)
    cv2.imwrite(str(tmp_path / "img" / "a.png"), colour + 20)
    cv2.imwrite(str(tmp_path / "gt" / "a.png"), colour)
    choices: dict[str, Any] = {"images": str(tmp_path / "img"), "masks": str(tmp_path / "gt")}
    assert measured(ClicksNeededProtocol(**choices, void_value=None), ScriptedSam(slow_model([1, 1])))["noc_at_90"] == 1
    with pytest.raises(ShardError, match=r"a\.png has no pixel above 128, so no target: see protocol\.void_value"):
        measured(ClicksNeededProtocol(**choices), ScriptedSam(slow_model([1, 1])))


def test_rejects_missing_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = map(str, folders)
    with pytest.raises(ConfigError, match=r"give both protocol\.images=FOLDER and protocol\.masks=FOLDER"):
        ClicksNeededProtocol(images=images)
    with pytest.raises(ConfigError, match="give shards=FOLDER"):
        ClicksNeededProtocol().list_images(None)
    (folders[1] / "pic1.bmp").unlink()
    with pytest.raises(ConfigError, match="'pic1' is only in one of"):
        ClicksNeededProtocol(images=images, masks=masks).list_images(None)
    (folders[1] / "pic1.bmp").write_bytes(b"BM no bitmap")
    protocol = ClicksNeededProtocol(images=images, masks=masks)
    with pytest.raises(ShardError, match=r"pic1\.bmp cannot be read as a mask"):
        protocol.measure(Predictor(ScriptedSam(slow_model([1, 1]))), protocol.list_images(None)[1])
