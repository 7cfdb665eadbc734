"""Grids, crops, stability and crop edges are those of segment_anything 1.0, whose generator made SA-1B."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peers import segment_anything

from sam_train.inference.automatic import touches_inner_edge
from sam_train.inference.grids import crops, point_grid
from sam_train.masks import stability_score
from sam_train.prompts.sampling import noisy_boxes


@pytest.fixture(scope="module")
def amg() -> Any:
    """`segment_anything.utils.amg`."""
    return segment_anything().amg


@pytest.mark.parametrize(("height", "width"), [(1500, 2250), (2250, 1500), (481, 321), (64, 64)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_crops(amg: Any, height: int, width: int, layers: int) -> None:
    boxes, layer_of = amg.generate_crop_boxes((height, width), layers, 512 / 1500)
    expected = [([x0, y0, x1, y1], layer) for (x0, y0, x1, y1), layer in zip(boxes, layer_of, strict=True)]
    found = [([c.x, c.y, c.x + c.width, c.y + c.height], c.layer) for c in crops(height, width, layers, 512 / 1500)]
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
    for crop in crops(height, width, 1, 512 / 1500):
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
    boxes = noisy_boxes(masks, std=0.0, max_px=20, generator=torch.Generator())
    assert torch.equal(boxes, amg.batched_mask_to_box(masks).float())
