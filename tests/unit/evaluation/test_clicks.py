"""The click protocol measures IoU over masks in the image frame; models with known predictions have known scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_train.evaluation.clicks import ClickProtocol, ClickResult
from sam_train.inference import Predictor
from sam_train.metrics.boundary_iou import boundary_iou
from sam_train.model import Sam
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards import Sample
from sam_train.structures import Prediction, Prompts

SIZE = 64


class ScriptedSam(Sam):
    """Knows the targets of 64-pixel images, in order. One click: `first` candidates a target; then, `later`."""

    def __init__(self, targets: Tensor, first: Callable[[Tensor], list[tuple[Tensor, float]]], later: Callable[[Tensor], Tensor]):
        nn.Module.__init__(self)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.targets, self.first, self.later = targets, first, later
        self.calls: list[tuple[Prompts, bool]] = []

    @property
    def image_size(self) -> int:
        return SIZE

    @property
    def logits_size(self) -> int:
        return SIZE

    def encode_images(self, images: Tensor, sizes_hw: Tensor) -> Tensor:
        return images.float()

    def decode(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Prediction:
        self.calls.append((prompts, multimask_output))
        answers = [self.first(t) if multimask_output else [(self.later(t), 0.5)] for t in self.targets]
        logits = torch.stack([torch.stack([m.float() * 20 - 10 for m, _ in candidates]) for candidates in answers])
        return Prediction(mask_logits=logits, iou_scores=torch.tensor([[s for _, s in candidates] for candidates in answers]))


def masks_of(record: ImageRecord) -> Tensor:
    decoded = [decode_rle(m.segmentation, height=record.height, width=record.width) for m in record.masks]
    padded = np.zeros((len(decoded), SIZE, SIZE), bool)
    padded[:, : record.height, : record.width] = decoded
    return torch.from_numpy(padded)


@pytest.fixture
def one(sample: Callable[..., tuple[ImageRecord, bytes]]) -> Sample:
    """Return a sample of 48 x 64 with two masks, which is padded but not resized."""
    record, jpeg = sample(0)
    return Sample(shard="a.tar", jpeg=jpeg, record=record)


def half(target: Tensor) -> Tensor:
    """The upper half of its pixels."""
    order = target.flatten().cumsum(0).reshape(target.shape)
    return target & (order <= target.sum() // 2)


def empty(target: Tensor) -> Tensor:
    return torch.zeros_like(target)


def three(target: Tensor) -> list[tuple[Tensor, float]]:
    """The right one is there, but half of it has the highest score."""
    return [(target, 0.2), (half(target), 0.9), (empty(target), 0.1)]


def test_uses_the_best_candidate_first_and_the_single_mask_later(one: Sample) -> None:
    targets = masks_of(one.record)
    model = ScriptedSam(targets, three, lambda t: t)
    result = ClickProtocol(num_clicks=3).run(Predictor(model), [one])
    halves = [int(half(t).sum()) / int(t.sum()) for t in targets]
    assert result.ious[:, 0].tolist() == pytest.approx(halves)
    assert result.ious[:, 1:].tolist() == [[1, 1], [1, 1]]
    assert result.oracle.tolist() == [1, 1]
    assert result.num_images == 1
    assert [multimask for _, multimask in model.calls] == [True, False, False]


def test_clicks_follow_errors_and_feed_back_logits(one: Sample) -> None:
    targets = masks_of(one.record)
    model = ScriptedSam(targets, three, half)
    ClickProtocol(num_clicks=3).run(Predictor(model), [one])
    for n, target in enumerate(targets):
        wrong = target & ~half(target)
        for round_, (prompts, _) in enumerate(model.calls):
            assert prompts.points_xy.shape[1] == 2 + round_  # a click, its padding, and one a correction
            if round_ == 0:
                assert prompts.mask_logits is None
                x, y = prompts.points_xy[n, 0].long().tolist()
                assert target[y, x]
            else:
                x, y = prompts.points_xy[n, -1].long().tolist()
                assert wrong[y, x]
                assert prompts.point_labels[n, -1] == 1
                assert prompts.mask_logits is not None
                assert torch.equal(prompts.mask_logits[n, 0] > 0, half(target))


def test_samples_large_masks_by_seed(one: Sample, mask_record: Callable[..., Any]) -> None:
    squares = []
    for i in range(12):
        mask = np.zeros((48, 64), bool)
        mask[2 : 5 + i, 2 : 5 + i] = True  # 9, 16, ... 196 pixels
        squares.append(mask_record(mask, mask_id=i))
    many = replace(one, record=replace(one.record, masks=squares))

    def drawn(**values: Any) -> list[int]:
        return [mask.area for mask in ClickProtocol(**values)._sample_masks(many.record, 1)]

    assert drawn(min_area_px=100) == [(3 + i) ** 2 for i in range(7, 12)]
    assert drawn(min_area_px=101) == [(3 + i) ** 2 for i in range(8, 12)]
    assert drawn(masks_per_image=3, min_area_px=1) == drawn(masks_per_image=3, min_area_px=1)
    assert len({tuple(drawn(masks_per_image=3, min_area_px=1, seed=seed)) for seed in range(6)}) > 1


def test_mean_is_over_masks(one: Sample, mask_record: Callable[..., Any]) -> None:
    single = replace(one, record=replace(one.record, masks=one.record.masks[:1]))
    none = replace(one, record=replace(one.record, masks=[]))
    targets = masks_of(one.record)
    protocol = ClickProtocol(num_clicks=1)
    good = protocol.run(Predictor(ScriptedSam(targets, lambda t: [(t, 1.0)] * 3, half)), [one, none])
    assert good.ious.tolist() == [[1], [1]]
    bad = protocol.run(Predictor(ScriptedSam(targets[:1], lambda t: [(empty(t), 1.0)] * 3, half)), [single])
    assert bad.ious.tolist() == [[0]]
    both = ClickResult(ious=np.concatenate([good.ious, bad.ious]), oracle=np.concatenate([good.oracle, bad.oracle]), num_images=3)
    assert both.means() == {
        "miou_at_1": pytest.approx(2 / 3),
        "oracle_at_1": pytest.approx(2 / 3),
        "num_masks": 3,
        "num_images": 3,
    }


def test_image_without_masks(one: Sample) -> None:
    none = replace(one, record=replace(one.record, masks=[]))
    result = ClickProtocol(num_clicks=3).run(Predictor(ScriptedSam(torch.zeros(0, SIZE, SIZE), three, half)), [none, none])
    assert result.ious.shape == (0, 3)
    assert result.means() == {"miou_at_1": 0, "miou_at_3": 0, "oracle_at_1": 0, "num_masks": 0, "num_images": 2}


def test_rejects_invalid_values() -> None:
    with pytest.raises(ValueError, match="num_corrections must be at least 0, got -1"):
        ClickProtocol(num_clicks=0)


def test_random_first_variant_randomizes_only_the_first_click(one: Sample) -> None:
    """The first click alone is random; with click="uniform" the later clicks are random, too."""
    targets = masks_of(one.record)

    def clicked(click: str, seed: int) -> tuple[Tensor, Tensor]:
        model = ScriptedSam(targets, three, half)
        ClickProtocol(num_clicks=2, click=click, seed=seed).run(Predictor(model), [one])
        prompts = model.calls[-1][0]
        return prompts.points_xy[:, 0], prompts.points_xy[:, -1]

    first, then = clicked("center", 0)
    firsts, thens = zip(*(clicked("random_first", seed) for seed in range(4)), strict=True)
    assert all(torch.equal(t, then) for t in thens)
    assert not any(torch.equal(f, first) for f in firsts)
    assert len({tuple(f.flatten().tolist()) for f in firsts}) == 4
    for drawn in firsts:
        assert all(target[int(y), int(x)] for target, (x, y) in zip(targets, drawn, strict=True))
    assert len({tuple(clicked("uniform", seed)[1].flatten().tolist()) for seed in range(4)}) == 4


def test_measures_many_masks_in_chunks(one: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """IoUs equal those of a single chunk; only random clicks differ between chunks."""
    targets = masks_of(one.record)
    whole = ClickProtocol(num_clicks=2).run(Predictor(ScriptedSam(targets, three, half)), [one])
    monkeypatch.setattr("sam_train.evaluation.clicks.MASKS_PER_CHUNK", 1)
    model = ScriptedSam(targets, three, half)
    model.targets = targets[:1]  # a part at a time: the first of this model's targets is asked about twice
    parts = ClickProtocol(num_clicks=2).run(Predictor(model), [one])
    assert [len(prompts) for prompts, _ in model.calls] == [1, 1, 1, 1]
    assert parts.ious.shape == whole.ious.shape
    assert parts.ious[0].tolist() == whole.ious[0].tolist()


def test_measures_boundary_iou_if_configured(one: Sample) -> None:
    targets = masks_of(one.record)
    result = ClickProtocol(num_clicks=2, boundary=True).run(Predictor(ScriptedSam(targets, three, half)), [one])
    cut = targets[:, : one.record.height, : one.record.width].numpy()
    expected = [boundary_iou(half(target)[: one.record.height].numpy(), mask) for target, mask in zip(targets, cut, strict=True)]
    assert result.boundary_ious is not None
    assert result.boundary_ious[:, 0].tolist() == pytest.approx(expected)
    summary = result.means((1, 2))
    assert summary["boundary_iou_at_1"] == pytest.approx(np.mean(expected))
    assert summary["boundary_iou_at_1"] < summary["miou_at_1"]
    assert "boundary_iou_at_1" not in ClickProtocol(num_clicks=1).run(Predictor(ScriptedSam(targets, three, half)), [one]).means()
