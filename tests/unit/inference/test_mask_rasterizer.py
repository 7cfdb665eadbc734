"""Areas, boxes and RLEs from cells equal those of the upsampled masks of `Resize.logits_to_image`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sam_train.geometry import Resize
from sam_train.inference import mask_rasterizer as module
from sam_train.inference.mask_rasterizer import MaskRasterizer
from sam_train.masks import masks_to_boxes_xyxy
from sam_train.rle import decode_rle, run_lengths_to_rle

CPU = torch.device("cpu")
SIZE = 64
# The decoder's grid is a quarter of the model frame, or as fine as the frame.
SHAPES = [(48, 64), (64, 64), (7, 5), (100, 30), (301, 517), (1, 200), (33, 1), (1, 1)]
GRIDS = [16, 64]


def smooth(num: int, grid: int, seed: int = 0) -> Tensor:
    """Return logits with smooth regions, like a decoder's."""
    coarse = torch.randn(num, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) * 8
    return F.interpolate(coarse, (grid, grid), mode="bicubic", align_corners=False)[:, 0]


def noise(num: int, grid: int, seed: int = 0) -> Tensor:
    return torch.randn(num, grid, grid, generator=torch.Generator().manual_seed(seed)) * 2


def rectangle(grid: int, y: int, x: int, height: int, width: int) -> Tensor:
    logits = torch.full((grid, grid), -4.3)
    logits[y : y + height, x : x + width] = 5.9
    return logits


def special(grid: int) -> Tensor:
    """Return an empty mask, a full one, a checkerboard, and rectangles of one logit and of a strip."""
    board = (torch.arange(grid)[:, None] + torch.arange(grid)) % 2 * 10.2 - 4.3
    found = [torch.full((grid, grid), -9.0), torch.full((grid, grid), 9.0), board]
    return torch.stack([*found, rectangle(grid, 0, 0, 1, 1), rectangle(grid, 5, 7, 1, 1), rectangle(grid, 2, 0, 3, grid)])


def whole(resize: Resize, logits: Tensor) -> Tensor:
    """Upsample every pixel of every mask."""
    return resize.logits_to_image(logits[:, None])[:, 0]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("make", [smooth, noise, lambda num, grid: special(grid)], ids=["smooth", "noise", "special"])
def test_areas_boxes_and_rles_equal_upsampled_masks(height: int, width: int, grid: int, make: Any) -> None:
    resize, logits = Resize(height, width, SIZE), make(6, grid)
    cells, plain = MaskRasterizer.for_image(resize, grid, CPU), whole(resize, logits)
    padded = MaskRasterizer.pad(logits)
    for threshold in (-1.0, 0.0, 1.0, 5.899):
        cut = cells.cut(padded, threshold)
        expected = (plain > threshold).sum((1, 2))
        # Rounding may differ where a logit is the threshold but for its last digits.
        doubtful = ((plain - threshold).abs() < 2e-5).sum((1, 2))
        count = cells.areas(padded, cut)
        assert bool(((count - expected).abs() <= doubtful).all())
        assert int(doubtful.max()) <= 20
        least = cells.count_pixels(cut.above)
        assert bool((least <= count).all())
        assert bool((count <= least + cells.count_pixels(cut.mixed)).all())
        sure = doubtful == 0
        assert torch.equal(cells.boxes(padded, cut)[sure].float(), masks_to_boxes_xyxy(plain > threshold)[sure])
    check_runs(cells, padded, plain)


def check_runs(cells: MaskRasterizer, padded: Tensor, plain: Tensor) -> None:
    height, width = plain.shape[1:]
    for i in range(len(plain)):
        cut = cells.cut(padded[i : i + 1], 0.0)
        if not bool((cut.above | cut.mixed).any()):
            continue
        runs = cells.run_lengths(cells.crop_logits(padded[i], cut), 0, 0, (height, width))
        assert runs.sum() == height * width
        assert (runs[1:] > 0).all(), "only the first run may be of nothing"
        mask = decode_rle(run_lengths_to_rle(runs, height, width), height=height, width=width)
        differ = mask != (plain[i] > 0).numpy()
        assert (plain[i].abs().numpy()[differ] < 2e-5).all()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_pixels_at_the_threshold_are_not_above_it(scale: int) -> None:
    """Integer logits and weights of eighths need no rounding, so that both methods agree on every pixel."""
    resize = Resize(48 * scale, 64 * scale, SIZE)
    logits = torch.randint(-2, 3, (8, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    cells, plain, padded = MaskRasterizer.for_image(resize, 16, CPU), whole(resize, logits), MaskRasterizer.pad(logits)
    for threshold in (-1.0, 0.0, 1.0):
        cut = cells.cut(padded, threshold)
        assert int((plain == threshold).sum()) > 50
        assert torch.equal(cells.areas(padded, cut), (plain > threshold).sum((1, 2)))
        assert torch.equal(cells.boxes(padded, cut).float(), masks_to_boxes_xyxy(plain > threshold))


def test_a_constant_at_the_threshold_is_below_it() -> None:
    """Cells of equal logits are decided without a mean, whose rounding could exceed the threshold."""
    cells, padded = MaskRasterizer.for_image(Resize(301, 517, SIZE), 16, CPU), MaskRasterizer.pad(torch.full((1, 16, 16), 0.1))
    threshold = float(padded[0, 0, 0])
    cut = cells.cut(padded, threshold)
    assert not bool(cut.above.any() | cut.mixed.any())
    assert cells.areas(padded, cut).tolist() == [0]


@pytest.mark.parametrize("grid", GRIDS)
def test_only_cells_on_the_boundary_are_mixed(grid: int) -> None:
    resize = Resize(480, 640, SIZE)
    cells, padded = MaskRasterizer.for_image(resize, grid, CPU), MaskRasterizer.pad(rectangle(grid, 4, 4, 6, 6)[None])
    cut = cells.cut(padded, 0.0)
    assert int(cut.mixed.sum()) == 8 * 8 - 4 * 4, "a frame of two cells around the rectangle's edge"
    assert int(cut.above.sum()) == 4 * 4


@pytest.mark.parametrize("values_at_once", [1, 200])
@pytest.mark.parametrize("pixels_at_once", [1, 10_000])
def test_results_do_not_depend_on_chunk_sizes(monkeypatch: pytest.MonkeyPatch, values_at_once: int, pixels_at_once: int) -> None:
    cells, padded = MaskRasterizer.for_image(Resize(100, 141, SIZE), 16, CPU), MaskRasterizer.pad(smooth(3, 16))

    def measured() -> list[Any]:
        cut = cells.cut(padded, 0.0)
        patches = [cells.crop_logits(padded[i], cells.cut(padded[i : i + 1], 0.0)) for i in range(3)]
        runs = [cells.run_lengths(patch, 0, 0, (100, 141)).tolist() for patch in patches]
        return [cells.areas(padded, cut).tolist(), cells.boxes(padded, cut).tolist(), runs]

    expected = measured()
    monkeypatch.setattr(module, "MIXED_PIXELS_PER_CHUNK", values_at_once)
    monkeypatch.setattr(module, "MASK_PIXELS_PER_CHUNK", pixels_at_once)
    assert measured() == expected


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (0, 9), (3, 9), (20, 30)])
def test_rle_of_a_crop_is_at_its_offset(x: int, y: int) -> None:
    """The frame of 40 x 50 lies in an image of 70 x 70, up to its corners."""
    resize, logits = Resize(40, 50, SIZE), torch.cat([smooth(5, 16), special(16)[1:]])
    cells, plain, padded = MaskRasterizer.for_image(resize, 16, CPU), whole(resize, logits) > 0, MaskRasterizer.pad(logits)
    for i in range(len(logits)):
        runs = cells.run_lengths(cells.crop_logits(padded[i], cells.cut(padded[i : i + 1], 0.0)), x, y, (70, 70))
        expected = np.zeros((70, 70), bool)
        expected[y : y + 40, x : x + 50] = plain[i].numpy()
        assert np.array_equal(decode_rle(run_lengths_to_rle(runs, 70, 70), height=70, width=70), expected)


def test_logit_patch_covers_only_the_mask() -> None:
    cells, padded = MaskRasterizer.for_image(Resize(480, 640, SIZE), 16, CPU), MaskRasterizer.pad(rectangle(16, 4, 6, 2, 3)[None])
    patch = cells.crop_logits(padded[0], cells.cut(padded, 0.0))
    assert patch.logits.shape == (2 + 2 + 2, 3 + 2 + 2), "its places, a cell more on either side, and two to the last one's nine"
    assert patch.logits.untyped_storage().nbytes() == patch.logits.nbytes, "a copy, or all logits would be kept with it"


def test_areas_beyond_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Areas beyond 2^24, which single precision does not represent, are exact."""
    cells = MaskRasterizer.for_image(Resize(10_000, 10_001, SIZE), 16, CPU)
    padded = MaskRasterizer.pad(torch.full((1, 16, 16), 1.0))
    cut = cells.cut(padded, 0.0)
    assert cells.areas(padded, cut).tolist() == [100_010_000]
    assert cells.boxes(padded, cut).tolist() == [[0, 0, 10_001, 10_000]]
    assert cells.run_lengths(cells.crop_logits(padded[0], cut), 0, 0, (10_000, 10_001)).tolist() == [0, 100_010_000]
