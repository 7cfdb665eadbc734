"""Grids, crops, stability, crop edges and all masks together are those of segment_anything 1.0's generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pycocotools import mask as coco_mask
from reference_models import reference_mobile_sam, segment_anything
from torch import Tensor, nn

from sam_train.checkpoint import load_checkpoint
from sam_train.config import build, config_dir
from sam_train.inference import GeneratedMask, GridMaskGenerator
from sam_train.inference.grids import generate_crops, point_grid
from sam_train.inference.mask_filters import touches_inner_edge
from sam_train.masks import stability_score
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.model.sam import PIXEL_MEAN, PIXEL_STD
from sam_train.prompts.sampling import noisy_boxes
from sam_train.structures import Prompts


@pytest.fixture(scope="module")
def amg() -> Any:
    """`segment_anything.utils.amg`."""
    return segment_anything().amg


@pytest.mark.parametrize(("height", "width"), [(1500, 2250), (2250, 1500), (481, 321), (64, 64)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_crops(amg: Any, height: int, width: int, layers: int) -> None:
    boxes, layer_of = amg.generate_crop_boxes((height, width), layers, 512 / 1500)
    expected = [([x0, y0, x1, y1], layer) for (x0, y0, x1, y1), layer in zip(boxes, layer_of, strict=True)]
    found = [([c.x, c.y, c.x + c.width, c.y + c.height], c.layer) for c in generate_crops(height, width, layers, 512 / 1500)]
    assert found == expected


@pytest.mark.parametrize("per_side", [1, 2, 8, 32])
def test_point_grid(amg: Any, per_side: int) -> None:
    assert np.allclose(point_grid(per_side), amg.build_point_grid(per_side), rtol=0, atol=1e-12)


def test_stability_score(amg: Any) -> None:
    logits = torch.randn(20, 30, 40) * 3
    assert torch.allclose(stability_score(logits, 1.0), amg.calculate_stability_score(logits, 0.0, 1.0))


def test_crop_edges(amg: Any) -> None:
    corners = torch.randint(0, 200, (3000, 2, 2)).sort(1).values.flatten(1).float()
    height, width = 300, 260
    for crop in generate_crops(height, width, 1, 512 / 1500):
        x0, y0 = crop.x, crop.y
        own = torch.minimum(corners, torch.tensor([crop.width, crop.height] * 2))
        box = [x0, y0, x0 + crop.width, y0 + crop.height]
        expected = amg.is_box_near_crop_edge(own, box, [0, 0, width, height])
        found = touches_inner_edge(own + torch.tensor([x0, y0] * 2), crop, (height, width))
        assert torch.equal(found, expected)
        assert crop.layer == 0 or 0 < int(found.sum()) < 3000


def test_corners_of_a_box_prompt_are_those_of_the_released_code(amg: Any) -> None:
    masks = torch.rand(20, 30, 40, generator=torch.Generator().manual_seed(0)) > 0.99
    masks[:, 7, 9] = True
    boxes = noisy_boxes(masks, std=0.0, max_px=20, rng=torch.Generator())
    assert torch.equal(boxes, amg.batched_mask_to_box(masks).float())


SIZE, GRID = 64, 16


def answers(pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return three masks and scores for each click (N x 2, model frame) on an image (3 x S x S).

    The masks are regions of similar colour within different distances of the click, with islands and holes.
    """
    column, row = (points + 0.3).long().clamp(0, SIZE - 1).unbind(1)
    far = (pixels[None] - pixels[:, row, column].T[:, :, None, None]).abs().sum(1)
    coarse = nn.functional.avg_pool2d(far[:, None], SIZE // GRID)[:, 0]
    places = (torch.arange(GRID) + 0.5) * (SIZE / GRID)
    across, down = places - points[:, 0, None], places - points[:, 1, None]
    distance = (across[:, None, :].square() + down[:, :, None].square()).sqrt()
    logits = torch.stack([torch.minimum(1.2 - coarse, (reach - distance) / 8) * 25 for reach in (10, 17, 40)], 1)
    scores = 0.8 + 0.2 * torch.sin(points @ torch.tensor([[0.11, 0.23, 0.31], [0.17, 0.05, 0.29]])).abs()
    return logits, scores


class Pixels(nn.Module):
    """An encoder whose embeddings are the pixels."""

    img_size = image_size = SIZE

    def forward(self, x: Tensor) -> Tensor:
        return x


class Clicks(nn.Module):
    """The reference's prompt encoder, whose embeddings are the clicks."""

    def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: None) -> tuple[Tensor, Tensor]:
        return points[0][:, 0].float(), torch.zeros(())

    def get_dense_pe(self) -> Tensor:
        return torch.zeros(())


class Answers(nn.Module):
    """The reference's mask decoder."""

    def forward(
        self, *, image_embeddings: Tensor, sparse_prompt_embeddings: Tensor, multimask_output: bool, **_: Any
    ) -> tuple[Tensor, Tensor]:
        assert multimask_output
        return answers(image_embeddings[0], sparse_prompt_embeddings)


class FakeSam(Sam):
    """Ours."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.image_encoder = Pixels()
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN)[:, None, None])
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD)[:, None, None])
        self.pixel_statistics = "released"

    def decode_jobs(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Iterator[DecodeJob]:
        assert multimask_output
        rows = torch.arange(len(prompts))
        yield DecodeJob(rows, 5, lambda some: answers(image_embeddings[0], prompts.points_xy[some, 0]))


def random_image(height: int, width: int) -> np.ndarray:
    """Shapes of eight colours, and dots for islands and holes."""
    rng = np.random.default_rng(3)
    soft = cv2.resize(rng.uniform(0, 255, (7, 9, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.where(soft > 128, np.uint8(230), np.uint8(20))
    for x, y in rng.integers(0, [width, height], (40, 2)):
        cv2.circle(image, (int(x), int(y)), 5, (rng.integers(0, 2, 3) * 230).tolist(), -1)
    return image


def released(**values: Any) -> GridMaskGenerator:
    preset = OmegaConf.load(Path(config_dir()) / "generator" / "released.yaml")
    generator: GridMaskGenerator = build(OmegaConf.merge(preset, values))
    return generator


def assert_same(found: list[GeneratedMask], expected: list[dict[str, Any]], *, exact: bool) -> None:
    """Mask by mask; `exact` to a pixel in ten thousand, else to an IoU of 0.99."""
    assert len(found) == len(expected)
    assert [m.predicted_iou for m in found] == sorted((m.predicted_iou for m in found), reverse=True)
    found = sorted(
        found, key=lambda m: ([m.crop.x, m.crop.y, m.crop.width], *np.round(m.prompt_points[0][:2], 2), m.predicted_iou)
    )
    expected = sorted(expected, key=lambda m: (m["crop_box"][:3], *np.round(m["point_coords"][0], 2), m["predicted_iou"]))
    for mine, theirs in zip(found, expected, strict=True):
        assert coco_mask.iou([mine.rle], [theirs["segmentation"]], [0])[0, 0] >= (0.9999 if exact else 0.99)
        assert mine.area == pytest.approx(theirs["area"], rel=1e-4 if exact else 1e-2)
        assert mine.predicted_iou == pytest.approx(theirs["predicted_iou"], abs=1e-4)
        assert mine.stability_score == pytest.approx(theirs["stability_score"], abs=1e-3)
        assert [point[:2] for point in mine.prompt_points] == [pytest.approx(point, abs=1e-3) for point in theirs["point_coords"]]
        assert [mine.crop.x, mine.crop.y, mine.crop.width, mine.crop.height] == theirs["crop_box"]
        x0, y0, x1, y1 = mine.box_xyxy
        assert [x0, y0, x1 - 1 - x0, y1 - 1 - y0] == pytest.approx(theirs["bbox"], abs=0 if exact else 2)


SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    (LOW := {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.8, "stability_score_offset": 2.0}, LOW),
    (FEW := {"box_nms_thresh": 0.4, "points_per_batch": 7}, FEW),
    ({"crop_n_layers": 1}, {"crop_layers": 1}),
    (
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.5, "crop_overlap_ratio": 0.2},
        {"crop_layers": 2, "crop_points_downscale": 2, "crop_nms_thresh": 0.5, "crop_overlap_ratio": 0.2},
    ),
    ({"min_mask_region_area": 200}, {"min_region_area_px": 200}),
    ({"min_mask_region_area": 10_000}, {"min_region_area_px": 10_000}),  # all islands are small: the largest stays
    ({"crop_n_layers": 1, "min_mask_region_area": 300}, {"crop_layers": 1, "min_region_area_px": 300}),
]


@pytest.mark.parametrize(("height", "width"), [(150, 211), (256, 256)])
@pytest.mark.parametrize(("theirs", "ours"), SETTINGS, ids=[" ".join(theirs) or "defaults" for theirs, _ in SETTINGS])
def test_all_masks(height: int, width: int, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    modules, common = segment_anything(), {"points_per_side": 10, "stability_score_thresh": 0.85}
    reference = modules.modeling.Sam(Pixels(), Clicks(), Answers())
    peer = modules.automatic_mask_generator.SamAutomaticMaskGenerator(reference, output_mode="coco_rle", **(common | theirs))
    image = random_image(height, width)
    found, dropped = released(**(common | ours)).generate(FakeSam(), image)
    assert_same(found, peer.generate(image), exact=True)
    assert len(found) >= 5
    assert dropped["nms"] > 5


@pytest.mark.slow
def test_all_masks_of_a_photograph(shared_dir: Path) -> None:
    """Real weights and a real image; tests/benchmarks/automatic.py uses all points."""
    weights = shared_dir / "weights" / "mobile_sam" / "mobile_sam.pth"
    image = cv2.imread(str(shared_dir / "data" / "sam_examples" / "dog.jpg"))[:, :, ::-1].copy()
    module = segment_anything().automatic_mask_generator
    peer = module.SamAutomaticMaskGenerator(reference_mobile_sam(weights), points_per_side=5, output_mode="coco_rle")
    found, _ = released(points_per_side=5).generate(load_checkpoint(weights, "cpu"), image)
    assert_same(found, peer.generate(image), exact=False)
    assert len(found) >= 5
