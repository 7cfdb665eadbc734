"""Edge maps worked out by hand, the protocol's grid and NMS, and boundaries from segments."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fake_sam import SIZE, Candidates, ScriptedSam
from scipy.io import savemat
from torch import Tensor

from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.edge_maps import EdgeMap
from sam_train.evaluation.edges import EdgeProtocol, segment_boundaries, upsample_logits
from sam_train.geometry import Resize
from sam_train.inference import Predictor


def square(top: int, left: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), np.float32)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_edge_is_the_gradient_on_the_outer_boundary() -> None:
    edges = EdgeMap(40, 40)
    edges.add(square(10, 10, 12))
    ring = cv2.dilate(square(10, 10, 12), np.ones((3, 3))) > square(10, 10, 12)
    assert np.array_equal(edges.strength > 0, ring)
    assert edges.strength[9, 12:20].tolist() == [4] * 8, "1 + 2 + 1, Sobel's"
    assert edges.strength[9, 9] == pytest.approx(np.sqrt(2)), "one of the nine, by both"
    assert (edges.gradient_x[15, 9], edges.gradient_y[15, 9]) == (4, 0)
    assert (edges.gradient_x[15, 22], edges.gradient_y[15, 22]) == (-4, 0)


def test_image_border_is_no_edge() -> None:
    edges = EdgeMap(40, 40)
    edges.add(square(0, 0, 40))
    assert not edges.strength.any()
    edges.add(square(0, 0, 20))
    assert {tuple(place) for place in np.argwhere(edges.strength > 0).tolist()} == {
        *((20, column) for column in range(21)),
        *((row, 20) for row in range(21)),
    }


def test_keeps_the_strongest_edge_with_its_direction() -> None:
    edges = EdgeMap(40, 40)
    edges.add(0.2 + 0.3 * square(10, 10, 12))
    assert not edges.strength.any(), "half is not more than half: no mask"
    weak = 0.3 + 0.4 * square(10, 10, 12)
    edges.add(weak)
    assert edges.strength[9, 15] == pytest.approx(1.6)
    edges.add(square(9, 10, 12))  # one higher: the old ring's upper row is inside it
    assert edges.strength[8, 15] == 4
    assert edges.strength[9, 15] == pytest.approx(1.6)
    assert edges.strength[15, 9] == 4
    before = edges.strength.copy()
    edges.add(weak)
    assert np.array_equal(edges.strength, before)


def test_suppresses_the_weaker_of_neighbouring_edges() -> None:
    edges = EdgeMap(60, 60)
    for left, strength in ((20, 0.6), (21, 1.0), (22, 0.8)):
        mask = np.zeros((60, 60), np.float32)
        mask[:, left:] = 0.51 + 0.49 * strength
        mask[:, :left] = 0.51 - 0.49 * strength if strength < 1 else 0.02
        edges.add(mask)
    columns = np.flatnonzero(edges.strength[30])
    assert columns.tolist() == [19, 20, 21], "one before each mask"
    thinned = edges.thinned(smooth_px=0)
    assert np.flatnonzero(thinned[30]).tolist() == [20]
    assert thinned[30, 20] == 1
    assert thinned[:, 20].tolist() == pytest.approx([min(row, 59 - row, 5) / 5 for row in range(60)]), "fading to the frame"
    assert edges.thinned(smooth_px=0, border_px=0)[0, 20] == 1


def test_keeps_separate_parallel_edges() -> None:
    edges = EdgeMap(60, 60)
    for left in (15, 25, 40):
        mask = np.zeros((60, 60), np.float32)
        mask[:, left:] = 1 - left / 100
        edges.add(mask)
    thinned = edges.thinned(smooth_px=0)
    assert np.flatnonzero(thinned[30]).tolist() == [14, 24, 39]
    assert thinned[30, [14, 24, 39]].tolist() == pytest.approx([1, 75 / 85, 60 / 85])


def test_smoothing_joins_edges_one_pixel_apart() -> None:
    edges = EdgeMap(60, 60)
    for left in (20, 22):
        mask = np.zeros((60, 60), np.float32)
        mask[:, left:] = 1
        edges.add(mask)
    assert np.flatnonzero(edges.thinned(smooth_px=0)[30]).tolist() == [19, 21]
    assert np.flatnonzero(edges.thinned(smooth_px=1.5)[30]).tolist() == [20]


def test_edge_map_without_masks_is_zero() -> None:
    assert not EdgeMap(20, 30).thinned().any()


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(321, 481, 256), (481, 321, 64), (64, 64, 64), (37, 200, 16), (1500, 900, 64)]
)
def test_upsampled_logits_equal_two_bilinear_steps(height: int, width: int, grid: int) -> None:
    logits = 8 * torch.randn(3, grid, grid)
    resize = Resize(height, width, 256)
    expected = resize.logits_to_image(logits[:, None])[:, 0]
    # F.interpolate places its pixels in float32: on a grid of 256, to 1e-5 of a pixel, times what noise rises over one.
    assert float((torch.cat(list(upsample_logits(logits, resize))) - expected).abs().max()) < 2e-3


def left_of(x: float) -> Tensor:
    return (torch.arange(SIZE) < x).expand(SIZE, SIZE)


def four_masks(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
    """Return masks left of columns 20, 20 and 44 for any click; a click in the upper left replaces one of them."""
    assert multimask
    x, y, _ = points[0]
    if x < 20 and y < 20:
        return [(left_of(20), 0.1), (left_of(8), 0.2), (left_of(44), 0.3)]
    return [(left_of(20), 0.9), (left_of(21), 0.8), (left_of(44), 0.7)]


def test_decodes_a_grid_with_three_masks_each_and_applies_nms() -> None:
    model = ScriptedSam(four_masks)
    edges = EdgeProtocol(points_per_side=4, points_per_batch=6).edges(Predictor(model), np.zeros((SIZE, SIZE, 3), np.uint8))
    assert [len(prompts) for prompts, _ in model.calls] == [6, 6, 4]
    points = torch.cat([prompts.points_xy[:, 0] for prompts, _ in model.calls])
    assert sorted({x for x, _ in points.tolist()}) == [8, 24, 40, 56]
    assert np.flatnonzero(edges[32]).tolist() == [8, 20, 44], "no mask is dropped for its scores; left of 21 is left of 20 again"


def write_truth(path: Path, *segmentations: np.ndarray) -> None:
    people = np.empty((1, len(segmentations)), object)
    for i, ids in enumerate(segmentations):
        people[0, i] = {"Segmentation": ids.astype(np.uint16), "Boundaries": np.zeros(ids.shape, np.uint8)}
    savemat(path, {"groundTruth": people})


@pytest.fixture
def bsds(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    columns = np.broadcast_to(np.arange(SIZE), (SIZE, SIZE))
    for name in ("100", "200"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
        write_truth(tmp_path / "labels" / f"{name}.mat", 1 + (columns > 20), 1 + (columns > 20) + (columns > 44))
    return {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}


def test_counts_against_all_annotators(bsds: dict[str, str], tmp_path: Path) -> None:
    def two_masks(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
        return [(left_of(20), 0.9), (left_of(44), 0.8), (left_of(44), 0.7)]

    protocol = EdgeProtocol(**bsds, points_per_side=2, smooth_px=0, border_px=0, num_thresholds=3, maps=str(tmp_path / "maps"))
    images = protocol.list_images(None)
    assert [(image.number, image.name) for image in images] == [(1, "100"), (2, "200")]
    measured = [protocol.measure(Predictor(ScriptedSam(two_masks)), image) for image in images]
    assert measured[0]["counts"] == [[192] * 3, [192] * 3, [128] * 3, [128] * 3], "one person has one line, one both"
    summary = protocol.summarize(measured)
    assert {name: summary.measures[name] for name in ("ods", "ois", "num_images")} == {"ods": 1, "ois": 1, "num_images": 2}
    assert summary.paper["paper: SAM ViT-H, 200 test images"]["ods"] == 0.768
    drawn = cv2.imread(str(tmp_path / "maps" / "100.png"), cv2.IMREAD_UNCHANGED)
    assert np.flatnonzero(drawn[30]).tolist() == [20, 44]
    assert drawn.max() == 255


def test_rejects_missing_files(bsds: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"give protocol\.images=BSDS500/data/images/test and protocol\.labels="):
        EdgeProtocol(images=bsds["images"]).list_images(None)
    with pytest.raises(ConfigError, match="no image was measured"):
        EdgeProtocol(**bsds).summarize([])
    Path(bsds["labels"], "200.mat").unlink()
    with pytest.raises(ShardError, match=r"200\.jpg has no ground truth"):
        EdgeProtocol(**bsds).list_images(None)


def test_segment_boundaries_are_one_pixel_wide() -> None:
    ids = np.ones((20, 30), np.uint16)
    ids[:, 15:] = 2
    ids[10:, 15:] = 3
    lines = segment_boundaries(ids)
    assert np.flatnonzero(lines[5]).tolist() == [14]
    assert np.flatnonzero(lines[:, 25]).tolist() == [9]
    assert not segment_boundaries(np.ones((20, 30), np.uint16)).any()
