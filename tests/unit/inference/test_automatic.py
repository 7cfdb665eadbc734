"""The automatic generator keeps what passes its filters, and says of every other candidate which filter it failed.

The models are fakes whose answers are known: one reads its candidates from a table by the clicked grid cell, one answers
with all pixels that look like the clicked one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_train.inference import AutomaticMaskGenerator
from sam_train.inference.automatic import touches_inner_edge
from sam_train.inference.grids import Crop
from sam_train.model import Sam
from sam_train.structures import Prediction, Prompts

SIZE = 64
Answer = Callable[[Tensor, Tensor], tuple[list[Tensor], list[float]]]


class FakeSam(Sam):
    """Embeddings are the pixels; `answer(pixels, point)` gives three candidates at full resolution and their scores."""

    def __init__(self, answer: Answer) -> None:
        nn.Module.__init__(self)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.answer = answer
        self.batch_sizes: list[int] = []

    @property
    def image_size(self) -> int:
        return SIZE

    def encode_images(self, images: Tensor, sizes_hw: Tensor) -> Tensor:
        return images.float()

    def decode(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Prediction:
        assert multimask_output
        self.batch_sizes.append(len(prompts))
        answers = [self.answer(image_embeddings[0], point) for point in prompts.points_xy[:, 0]]
        logits = torch.stack([torch.stack(masks) for masks, _ in answers])
        return Prediction(mask_logits=logits, iou_scores=torch.tensor([scores for _, scores in answers]))


def rect(x0: int, y0: int, x1: int, y1: int, *, logit: float = 5.0) -> Tensor:
    logits = torch.full((SIZE, SIZE), -5.0)
    logits[y0:y1, x0:x1] = logit
    return logits


def table(cells: dict[tuple[int, int], list[tuple[Tensor, float]]]) -> Answer:
    """Candidates by (column, row) of a 2 x 2 grid; cells that are not named answer with low scores."""

    def answer(pixels: Tensor, point: Tensor) -> tuple[list[Tensor], list[float]]:
        cell = int(point[0] > SIZE / 2), int(point[1] > SIZE / 2)
        candidates = cells.get(cell, [(rect(0, 0, 9, 9), 0.1)] * 3)
        return [mask for mask, _ in candidates], [score for _, score in candidates]

    return answer


def looks_like(pixels: Tensor, point: Tensor) -> tuple[list[Tensor], list[float]]:
    """All pixels as red, as green or as black as the clicked one; the whole frame; and nothing."""
    colours = (pixels[0] > 120) + 2 * (pixels[1] > 120).int()
    clicked = colours[int(point[1]), int(point[0])]
    alike = torch.where(colours == clicked, 20.0, -20.0)
    return [alike, torch.full_like(alike, 20), torch.full_like(alike, -20)], [0.9 + float(clicked) / 100, 0.95, 0.95]


def generator(**values: Any) -> AutomaticMaskGenerator:
    return AutomaticMaskGenerator(**{"points_per_side": 2, "min_region_area_px": 30} | values)


BLANK = np.zeros((SIZE, SIZE, 3), np.uint8)


def test_each_filter_drops_what_it_is_for() -> None:
    unstable = rect(10, 10, 30, 30, logit=0.5)
    unstable[15:25, 15:25] = 5
    pierced = rect(36, 36, 60, 60)
    pierced[45:48, 45:48] = -5
    pierced[2:5, 2:5] = 5
    cells = {
        (0, 0): [(rect(4, 4, 28, 28), 0.95), (rect(4, 4, 28, 27), 0.9), (rect(4, 4, 20, 20), 0.88)],
        (1, 0): [(unstable, 0.97), (rect(0, 0, SIZE, SIZE), 0.99), (torch.full((SIZE, SIZE), -5.0), 0.99)],
        (1, 1): [(pierced, 0.96), (rect(50, 5, 55, 10), 0.97), (rect(40, 4, 60, 24), 0.89)],
    }
    masks, dropped = generator().generate(FakeSam(table(cells)), BLANK)
    assert dropped == {
        "predicted_iou": 3 + 1,  # a whole cell, and one that only reaches the threshold
        "stability": 2,  # the unstable one and the empty one
        "empty": 0,
        "covers_image": 1,
        "crop_edge": 0,
        "nms": 1,
        "small_region": 1,
    }
    assert [m.predicted_iou for m in masks] == pytest.approx([0.96, 0.95, 0.89])
    assert sum(dropped.values()) + len(masks) == 2 * 2 * 3
    whole, first, last = masks
    assert np.array_equal(whole.mask, rect(36, 36, 60, 60).numpy() > 0), "hole filled, island gone"
    assert np.array_equal(first.mask, rect(4, 4, 28, 28).numpy() > 0)
    assert [m.box_xyxy for m in masks] == [(36, 36, 60, 60), (4, 4, 28, 28), (40, 4, 60, 24)]
    assert [m.point_xy for m in masks] == [(48, 48), (16, 16), (48, 48)]
    assert last.stability_score == 1
    assert last.crop == Crop(0, 0, SIZE, SIZE, 0)


def test_stability_is_measured_at_its_offset() -> None:
    soft = rect(10, 10, 30, 30, logit=2.0)
    cells = {(0, 0): [(soft, 0.9)] + [(soft, 0.1)] * 2}
    kept = [len(generator(stability_score_offset=offset).generate(FakeSam(table(cells)), BLANK)[0]) for offset in (1.5, 2.5)]
    assert kept == [1, 0]


def test_an_empty_mask_never_passes() -> None:
    cells = {(0, 0): [(torch.full((SIZE, SIZE), -5.0), 0.9)] * 3}
    masks, dropped = generator(stability_score_thresh=0.0).generate(FakeSam(table(cells)), BLANK)
    assert masks == []
    assert dropped["empty"] == 3


def test_nothing_found_is_no_error() -> None:
    masks, dropped = generator().generate(FakeSam(table({})), BLANK)
    assert masks == []
    assert dropped["predicted_iou"] == 12
    assert sum(dropped.values()) == 12


def test_small_regions_are_left_alone_when_told_so() -> None:
    cells = {(0, 0): [(rect(4, 4, 6, 6), 0.95)] * 3}
    masks, dropped = generator(min_region_area_px=0).generate(FakeSam(table(cells)), BLANK)
    assert [int(m.mask.sum()) for m in masks] == [4]
    assert dropped["small_region"] == 0


def test_prompts_come_in_batches() -> None:
    model = FakeSam(looks_like)
    generator(points_per_side=5, points_per_batch=10).generate(model, BLANK)
    assert model.batch_sizes == [10, 10, 5]


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A red square in the middle, a small green one in a corner; and the red one's mask."""
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4, 0] = 240
    image[: height // 8, : width // 8, 1] = 240
    return image, image[..., 0] > 0


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96)])
def test_objects_are_found_at_the_size_of_the_image(height: int, width: int) -> None:
    image, red = scene(height, width)
    masks, dropped = generator(points_per_side=8).generate(FakeSam(looks_like), image)
    assert sum(dropped.values()) + len(masks) == 8 * 8 * 3
    found = [m for m in masks if (m.mask & red).sum() / (m.mask | red).sum() > 0.9]
    assert len(found) == 1
    assert all(m.mask.shape == (height, width) for m in masks)
    x, y = found[0].point_xy
    assert red[int(y), int(x)]
    assert dropped["nms"] > 10, "the same object from many clicks"


def test_crops_zoom_in_and_their_cut_masks_go() -> None:
    """In a crop, the red square is cut by the crop's inner edge; the small one lies whole in a crop of each layer."""
    image, _ = scene(256, 256)
    model = FakeSam(looks_like)
    masks, dropped = generator(points_per_side=16, crop_layers=2, points_per_batch=256).generate(model, image)
    assert model.batch_sizes == [256] + [64] * 4 + [16] * 16
    assert sum(dropped.values()) + len(masks) == sum(model.batch_sizes) * 3
    assert dropped["crop_edge"] > 100
    assert dropped["nms_across_crops"] >= 2, "the small square from the image and from its crop of layer 1"
    boxes = {m.box_xyxy: m.crop.layer for m in masks}
    assert boxes[64, 64, 192, 192] == 0
    assert boxes[0, 0, 32, 32] == 2, "the most zoomed-in wins"
    for m in masks:
        x, y = m.point_xy
        assert m.crop.x <= x <= m.crop.x + m.crop.width
        assert m.crop.y <= y <= m.crop.y + m.crop.height
        assert m.mask[int(y), int(x)], "point and mask are in the image frame"


def test_inner_edges_are_those_that_are_none_of_the_image() -> None:
    crop = Crop(x=0, y=100, width=200, height=100, layer=1)  # of an image of 300 x 300: only its left edge is the image's
    boxes = torch.tensor(
        [
            [0.0, 140, 60, 160],  # at the image's edge
            [30.0, 140, 60, 160],  # in the middle
            [30.0, 120, 60, 160],  # 20 px from the top, which is inner
            [30.0, 121, 60, 160],
            [30.0, 140, 180, 160],  # 20 px from the right
            [30.0, 140, 179, 160],
            [30.0, 140, 60, 200],  # at the bottom
        ]
    )
    assert touches_inner_edge(boxes, crop, (300, 300)).tolist() == [False, False, True, False, True, False, True]
