from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sam_train import geometry
from sam_train.geometry import InterpolationTaps, Resize, pad_to_square, resize_image, resize_masks

side = st.integers(1, 4000)


@given(side, side, st.integers(1, 1024))
def test_longest_side_becomes_size(height: int, width: int, size: int) -> None:
    scaled = Resize(height, width, size).scaled_hw
    assert max(scaled) == size
    assert min(scaled) >= 1
    short, long = sorted((height, width))
    assert min(scaled) == pytest.approx(max(1, size * short / long), abs=0.5)


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [(1500, 2250, 1024, (683, 1024)), (64, 48, 64, (64, 48)), (1, 1000, 64, (1, 64)), (3, 1, 1024, (1024, 341))],
)
def test_scaled_sides_round_as_released_sam(height: int, width: int, size: int, expected: tuple[int, int]) -> None:
    assert Resize(height, width, size).scaled_hw == expected


@pytest.mark.parametrize("sides", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (-1, 5, 5)])
def test_sides_must_be_positive(sides: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Resize(*sides)


@given(side, side, st.sampled_from([64, 256, 1024]))
def test_points_keep_their_share_of_each_side(height: int, width: int, size: int) -> None:
    resize = Resize(height, width, size)
    points = torch.tensor([[0.0, 0.0], [width, height], [width / 3, height / 7]], dtype=torch.float64)
    new_height, new_width = resize.scaled_hw
    expected = torch.tensor([[0.0, 0.0], [new_width, new_height], [new_width / 3, new_height / 7]], dtype=torch.float64)
    assert torch.allclose(resize.points_to_model(points), expected)


def test_points_keep_shape_and_dtype() -> None:
    assert Resize(10, 20, 40).points_to_model(torch.ones(2, 3, 2)).shape == (2, 3, 2)
    assert Resize(10, 20, 40).points_to_model(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (64, 64), (30, 60)])
def test_logits_to_image_preserves_a_linear_plane(height: int, width: int) -> None:
    """A plane that is linear in x and y survives bilinear resizing away from the border."""
    resize = Resize(height, width, 64)
    scaled_height, scaled_width = resize.scaled_hw
    ys, xs = torch.meshgrid((torch.arange(16) + 0.5) * 4, (torch.arange(16) + 0.5) * 4, indexing="ij")
    plane = (ys / scaled_height + 2 * xs / scaled_width)[None, None]
    image = resize.logits_to_image(plane)
    assert image.shape == (1, 1, height, width)
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    expected = y[:, None] + 2 * x[None]
    inner = (slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4)))
    assert torch.allclose(image[0, 0][inner], expected[inner], atol=0.05)


def test_logits_at_image_size_are_unchanged() -> None:
    logits = torch.randn(2, 3, 8, 8)
    assert torch.allclose(Resize(8, 8, 8).logits_to_image(logits), logits)


def test_padding_never_reaches_the_image() -> None:
    logits = torch.zeros(1, 1, 64, 64)
    logits[..., 32:, :] = 1e6  # a landscape image of half height: the lower half is padding
    assert Resize(32, 64, 64).logits_to_image(logits).abs().max() == 0


def test_resize_image() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 200
    assert resize_image(image, 4, 4) is image
    assert np.array_equal(resize_image(image, 2, 2), np.full((2, 2, 3), 100))
    assert resize_image(image, 9, 5).shape == (9, 5, 3)
    assert resize_image(np.full((3, 5, 3), 7, np.uint8), 6, 10).min() == 7


@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), [(8, 12, 4, 6), (1, 2000, 1, 1000), (6, 1, 2, 1)])
def test_a_mask_pixel_is_set_when_more_than_half_of_its_area_was(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    masks = np.random.default_rng(0).random((5, height, width)) < 0.5
    blocks = masks.reshape(5, new_height, height // new_height, new_width, width // new_width)
    assert np.array_equal(resize_masks(masks, new_height, new_width), blocks.mean((2, 4)) > 0.5)


def test_enlarged_masks_shrink_back_unchanged() -> None:
    masks = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    large = resize_masks(masks, 25, 35)
    assert large.dtype == bool
    assert np.array_equal(large[:, 2::5, 2::5], masks)


def test_no_masks_and_masks_of_the_right_size() -> None:
    assert resize_masks(np.zeros((0, 5, 7), bool), 3, 4).shape == (0, 3, 4)
    masks = np.ones((2, 5, 7), bool)
    assert resize_masks(masks, 5, 7) is masks


def test_pad_to_square() -> None:
    padded = pad_to_square(np.ones((2, 3), bool), 4)
    assert padded.dtype == bool
    assert padded.astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    colour = pad_to_square(np.zeros((4, 2, 3), np.uint8), 4, value=np.array([1, 2, 3], np.uint8))
    assert colour[:, 2:].reshape(-1, 3).tolist() == [[1, 2, 3]] * 8
    assert not colour[:, :2].any()


def test_pad_rejects_arrays_larger_than_the_frame() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        pad_to_square(np.ones((5, 3), bool), 4)


def matrix(taps: InterpolationTaps, grid: int) -> Tensor:
    """Return the taps as a matrix, pixels x grid; indices outside the grid are clipped."""
    places = (taps.first[:, None] + np.arange(3)).clip(0, grid - 1)
    found = np.zeros((len(taps.first), grid))
    for i in range(3):
        np.add.at(found, (np.arange(len(found)), places[:, i]), taps.weights[:, i])
    return torch.from_numpy(found)


@pytest.mark.parametrize("grid", [16, 64])
@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (64, 64), (64, 63), (1, 1), (7, 5), (100, 30), (3, 500), (999, 1000), (65, 2000)]
)
def test_taps_equal_the_two_interpolations(height: int, width: int, grid: int) -> None:
    resize = Resize(height, width, 64)
    logits = torch.randn(2, 1, grid, grid, dtype=torch.float64)
    rows, columns = resize.interpolation_taps(grid)
    assert (np.diff(rows.first) >= 0).all()
    assert (np.diff(columns.first) >= 0).all()
    assert rows.weights.min() >= 0
    assert torch.allclose(matrix(rows, grid) @ logits @ matrix(columns, grid).T, resize.logits_to_image(logits), atol=1e-6)


def test_rejects_logits_finer_than_the_model_frame() -> None:
    with pytest.raises(ValueError, match="65 x 65 are finer than the model frame of 64 x 64"):
        Resize(5, 5, 64).interpolation_taps(65)


@pytest.mark.parametrize(
    ("height", "width", "pixels_at_once"),
    [(20, 31, 1), (20, 31, 700), (20, 31, 4199), (20, 31, 4200), (59, 1, 700), (7, 90, 4200), (150, 211, 4200), (60, 70, 1)],
)
def test_chunked_bilinear_equals_pillow(monkeypatch: pytest.MonkeyPatch, height: int, width: int, pixels_at_once: int) -> None:
    monkeypatch.setattr(geometry, "MAX_CHUNK_PIXELS", pixels_at_once)
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    assert np.array_equal(resize_image(image, height, width, "bilinear"), expected)
