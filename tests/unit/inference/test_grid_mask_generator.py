"""The automatic generator keeps masks that pass its filters and counts the others by the filter that dropped them.

The models are fakes with known predictions: one reads its candidates from a table by the clicked grid cell, one predicts all
pixels that look like the clicked one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from measurement import measure_memory
from PIL import Image
from torch import Tensor, nn

from sam_train.errors import ConfigError
from sam_train.inference import GridMaskGenerator
from sam_train.inference.grids import Crop
from sam_train.inference.mask_filters import touches_inner_edge
from sam_train.inference.prompt_arrays import click_prompts, make_prompts
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.structures import PointLabel, Prediction, Prompts

SIZE = 64
Answer = Callable[[Tensor, Tensor], tuple[list[Tensor], list[float]]]


class FakeSam(Sam):
    """A model whose embeddings are the pixels; `answer(pixels, point)` returns three full-resolution masks and their scores."""

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
        self.batch_sizes.append(len(prompts))
        answers = [self.answer(image_embeddings[0], point) for point in prompts.points_xy[:, 0]]
        logits = torch.stack([torch.stack(masks) for masks, _ in answers])
        scores = torch.tensor([scores for _, scores in answers])
        num = 3 if multimask_output else 1
        return Prediction(mask_logits=logits[:, :num], iou_scores=scores[:, :num])

    def decode_jobs(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Iterator[DecodeJob]:
        def answer(rows: Tensor) -> tuple[Tensor, Tensor]:
            prediction = self.decode(image_embeddings, prompts[rows], multimask_output=multimask_output)
            return prediction.mask_logits, prediction.iou_scores

        yield DecodeJob(torch.arange(len(prompts)), len(prompts), answer)


def rect(x0: int, y0: int, x1: int, y1: int, *, logit: float = 5.0) -> Tensor:
    logits = torch.full((SIZE, SIZE), -5.0)
    logits[y0:y1, x0:x1] = logit
    return logits


def table(cells: dict[tuple[int, int], list[tuple[Tensor, float]]]) -> Answer:
    """Return candidates by (column, row) of a 2 x 2 grid; other cells get low scores."""

    def answer(pixels: Tensor, point: Tensor) -> tuple[list[Tensor], list[float]]:
        cell = int(point[0] > SIZE / 2), int(point[1] > SIZE / 2)
        candidates = cells.get(cell, [(rect(0, 0, 9, 9), 0.1)] * 3)
        return [mask for mask, _ in candidates], [score for _, score in candidates]

    return answer


def looks_like(pixels: Tensor, point: Tensor) -> tuple[list[Tensor], list[float]]:
    """Return three masks: all pixels of the clicked colour (red, green or black), the whole frame, and an empty mask."""
    colours = (pixels[0] > 120) + 2 * (pixels[1] > 120).int()
    clicked = colours[int(point[1]), int(point[0])]
    alike = torch.where(colours == clicked, 20.0, -20.0)
    return [alike, torch.full_like(alike, 20), torch.full_like(alike, -20)], [0.9 + float(clicked) / 100, 0.95, 0.95]


def generator(**values: Any) -> GridMaskGenerator:
    return GridMaskGenerator(**{"points_per_side": 2, "min_region_area_px": 30} | values)


BLANK = np.zeros((SIZE, SIZE, 3), np.uint8)


def test_each_filter_drops_its_masks() -> None:
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
    assert [m.prompt_points for m in masks] == [((48, 48, 1),), ((16, 16, 1),), ((48, 48, 1),)]
    assert [m.area for m in masks] == [24 * 24, 24 * 24, 20 * 20]
    assert last.stability_score == 1
    assert last.crop == Crop(0, 0, SIZE, SIZE, 0)


def test_stability_is_measured_at_its_offset() -> None:
    soft = rect(10, 10, 30, 30, logit=2.0)
    cells = {(0, 0): [(soft, 0.9)] + [(soft, 0.1)] * 2}
    kept = [len(generator(stability_score_offset=offset).generate(FakeSam(table(cells)), BLANK)[0]) for offset in (1.5, 2.5)]
    assert kept == [1, 0]


def test_drops_empty_masks() -> None:
    cells = {(0, 0): [(torch.full((SIZE, SIZE), -5.0), 0.9)] * 3}
    masks, dropped = generator(stability_score_thresh=0.0).generate(FakeSam(table(cells)), BLANK)
    assert masks == []
    assert dropped["empty"] == 3


def test_returns_no_masks_without_confident_candidates() -> None:
    masks, dropped = generator().generate(FakeSam(table({})), BLANK)
    assert masks == []
    assert dropped["predicted_iou"] == 12
    assert sum(dropped.values()) == 12


def test_keeps_small_regions_with_min_region_area_0() -> None:
    cells = {(0, 0): [(rect(4, 4, 6, 6), 0.95)] * 3}
    masks, dropped = generator(min_region_area_px=0).generate(FakeSam(table(cells)), BLANK)
    assert [int(m.mask.sum()) for m in masks] == [4]
    assert dropped["small_region"] == 0


def test_decodes_prompts_in_batches() -> None:
    model = FakeSam(looks_like)
    generator(points_per_side=5, points_per_batch=10).generate(model, BLANK)
    assert model.batch_sizes == [10, 10, 5]


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a red square in the middle and a small green one in a corner, and the red square's mask."""
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4, 0] = 240
    image[: height // 8, : width // 8, 1] = 240
    return image, image[..., 0] > 0


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96)])
def test_masks_have_the_size_of_the_image(height: int, width: int) -> None:
    image, red = scene(height, width)
    masks, dropped = generator(points_per_side=8).generate(FakeSam(looks_like), image)
    assert sum(dropped.values()) + len(masks) == 8 * 8 * 3
    found = [m for m in masks if (m.mask & red).sum() / (m.mask | red).sum() > 0.9]
    assert len(found) == 1
    assert all(m.mask.shape == (height, width) for m in masks)
    ((x, y, _),) = found[0].prompt_points
    assert red[int(y), int(x)]
    assert dropped["nms"] > 10, "the same object from many clicks"


def test_crops_keep_complete_masks_and_drop_cut_ones() -> None:
    """The red square is cut by the inner edges of the crops; the small one is complete in one crop of each layer."""
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
        ((x, y, _),) = m.prompt_points
        assert m.crop.x <= x <= m.crop.x + m.crop.width
        assert m.crop.y <= y <= m.crop.y + m.crop.height
        assert m.mask[int(y), int(x)], "point and mask are in the image frame"


def test_inner_edges_are_crop_edges_inside_the_image() -> None:
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


def test_keeps_masks_that_cover_the_image_without_max_area_fraction() -> None:
    cells = {(0, 0): [(rect(0, 0, SIZE, SIZE), 0.95)] * 3}
    masks, dropped = generator(max_area_fraction=None).generate(FakeSam(table(cells)), BLANK)
    assert [m.area for m in masks] == [SIZE * SIZE]
    assert "covers_image" not in dropped


def test_counts_pixels_near_the_area_limit() -> None:
    """64 x 61 pixels of 64 x 64 are 0.953 of the image."""
    cells = {(0, 0): [(rect(0, 0, SIZE, 61), 0.95)] * 3}
    for fraction, kept in ((0.954, 1), (0.953, 0)):
        masks, _ = generator(max_area_fraction=fraction).generate(FakeSam(table(cells)), BLANK)
        assert len(masks) == kept


def islands(*corners: tuple[int, int]) -> Tensor:
    logits = torch.full((SIZE, SIZE), -5.0)
    for x, y in corners:
        logits[y : y + 4, x : x + 4] = 5
    return logits


def test_keeps_the_largest_island_if_configured() -> None:
    mask = islands((4, 4), (20, 20), (40, 40))
    mask[44, 40:44] = 5
    cells = {(0, 0): [(mask, 0.95)] * 3}
    masks, dropped = generator(keep_largest_island=True).generate(FakeSam(table(cells)), BLANK)
    assert [(m.area, m.box_xyxy) for m in masks] == [(20, (40, 40, 44, 45))]
    assert dropped["small_region"] == 0
    assert generator().generate(FakeSam(table(cells)), BLANK)[1]["small_region"] == 1


def test_nms_after_regions_drops_masks_that_cleaning_made_equal() -> None:
    """The boxes differ with an island and are equal without it; the mask that had no island is kept despite its lower score."""
    clean, spotted = rect(8, 8, 40, 40), torch.maximum(rect(8, 8, 40, 40), islands((55, 55)))
    cells = {(0, 0): [(spotted, 0.95), (clean, 0.9), (clean, 0.1)]}
    masks, dropped = generator(nms_after_regions=True).generate(FakeSam(table(cells)), BLANK)
    assert [m.predicted_iou for m in masks] == [pytest.approx(0.9)]
    assert dropped["nms_after_regions"] == 1
    assert len(generator().generate(FakeSam(table(cells)), BLANK)[0]) == 2


def test_nms_by_masks_keeps_different_masks_with_equal_boxes() -> None:
    frame, inside = rect(8, 8, 40, 40), rect(14, 14, 34, 34)
    ring = torch.minimum(frame, -inside)
    assert bool(((ring > 0) == (frame > 0) & ~(inside > 0)).all())
    cells = {(0, 0): [(ring, 0.95), (frame, 0.9), (inside, 0.91)]}
    settings = {"box_nms_thresh": 0.65, "min_region_area_px": 0}
    by_boxes, _ = generator(**settings).generate(FakeSam(table(cells)), BLANK)
    by_masks, dropped = generator(nms_by="masks", **settings).generate(FakeSam(table(cells)), BLANK)
    assert [m.area for m in by_boxes] == [32 * 32 - 20 * 20, 20 * 20]
    assert [m.area for m in by_masks] == [32 * 32 - 20 * 20, 20 * 20, 32 * 32]
    assert dropped["nms"] == 0


def test_parents_are_the_smallest_containing_masks() -> None:
    cells = {(0, 0): [(rect(2, 2, 60, 60), 0.9), (rect(4, 4, 40, 40), 0.95), (rect(10, 10, 20, 20), 0.92)]}
    masks, _ = generator(nested_share=0.9).generate(FakeSam(table(cells)), BLANK)
    assert [(m.area, m.parent) for m in masks] == [(36 * 36, 2), (100, 0), (58 * 58, None)]
    assert {m.parent for m in generator().generate(FakeSam(table(cells)), BLANK)[0]} == {None}


def test_given_prompts_add_to_the_grid_or_replace_it() -> None:
    """Boxes and clicks are in the image frame, here twice as large as the model frame."""
    image = np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)
    image[40:60, 40:60, 0] = 240
    boxes = make_prompts(boxes_xyxy=torch.tensor([[44.0, 44, 60, 60]]))
    model = FakeSam(looks_like)
    masks, dropped = generator(points_per_side=0).generate(model, image, boxes)
    assert model.batch_sizes == [1]
    assert sum(dropped.values()) + len(masks) == 3
    (red,) = [m for m in masks if m.box_xyxy == (40, 40, 60, 60)]
    assert red.prompt_points == ((44, 44, PointLabel.BOX_TOP_LEFT), (60, 60, PointLabel.BOX_BOTTOM_RIGHT))
    beside, _ = generator().generate(FakeSam(looks_like), image, click_prompts(torch.tensor([[50.0, 50.0]])))
    assert ((50, 50, 1),) in [m.prompt_points for m in beside]
    with pytest.raises(ConfigError, match="points_per_side=0 leaves no prompts"):
        generator(points_per_side=0).generate(model, image)


def test_prompts_of_several_points_are_not_ambiguous() -> None:
    prompts = make_prompts(points_xy=torch.tensor([[[10.0, 10.0], [12.0, 12.0]]]))
    masks, dropped = generator(points_per_side=0).generate(FakeSam(looks_like), scene(64, 64)[0], prompts)
    assert len(masks) + sum(dropped.values()) == 1


def test_given_prompts_are_decoded_on_the_whole_image_only() -> None:
    model = FakeSam(looks_like)
    prompts = click_prompts(torch.tensor([[30.0, 30.0]]))
    generator(points_per_side=2, crop_layers=1).generate(model, scene(64, 64)[0], prompts)
    assert model.batch_sizes == [4, 1, 1, 1, 1, 1]


def test_bilinear_resampling_equals_the_released_code() -> None:
    seen = []

    def answer(pixels: Tensor, point: Tensor) -> tuple[list[Tensor], list[float]]:
        seen.append(pixels)
        return [rect(0, 0, 9, 9)] * 3, [0.1] * 3

    image = np.random.default_rng(0).integers(0, 256, (150, 150, 3)).astype(np.uint8)
    for resampling in ("area", "bilinear"):
        generator(resampling=resampling, points_per_side=1).generate(FakeSam(answer), image)
    expected = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(seen[1].permute(1, 2, 0).numpy(), expected)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    image, _ = scene(200, 300)
    alone, dropped_alone = generator(points_per_side=16, crop_layers=1).generate(FakeSam(looks_like), image)
    torch.set_num_threads(threads)
    try:
        together, dropped = generator(points_per_side=16, crop_layers=1).generate(FakeSam(looks_like), image)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert together == alone
    assert dropped == dropped_alone


def test_infer_and_postprocess_in_another_thread_equal_generate() -> None:
    """The result of `infer` needs neither the model nor its thread, so that the next image can be inferred meanwhile."""
    image, _ = scene(100, 80)
    made = generator(points_per_side=8)
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(made.postprocess, *made.infer(FakeSam(looks_like), image)).result()
    assert finished == made.generate(FakeSam(looks_like), image)


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ["area", "bilinear"])
def test_memory_does_not_grow_with_the_image(resampling: str) -> None:
    """The image has 100 megapixels: 300 MB of pixels, and 100 MB for each mask if it were decoded."""
    image = np.zeros((10_000, 10_000, 3), np.uint8)
    image[2_000:7_000, 1_000:9_000, 0] = 240
    image[4_000:4_010, 4_000:4_010, 0] = 0  # less than a pixel of the model's
    model = FakeSam(looks_like)
    found: list[Any] = []
    made = generator(points_per_side=4, resampling=resampling, min_region_area_px=100)
    used_mb, _ = measure_memory(lambda: found.extend(made.generate(model, image)[0]))
    assert used_mb < 250
    assert any(abs(m.area - 5_000 * 8_000) < 0.02 * 5_000 * 8_000 for m in found)
