"""Redaction is irreversible: boxes with other pixels but the same cell means give the same result; nothing changes outside."""

from __future__ import annotations

import numpy as np
import pytest

from data_engine.privacy.redaction import GREY, MIN_CELL_PX, MIN_DILATE, REDACTION_METHODS, cell_means, redact_box

BOX = np.array([60.0, 40.0, 140.0, 120.0])
DILATE, CELLS = 1.5, 4
COVERED = (40, 20, 160, 140)


def noise(seed: int = 0, height: int = 160, width: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def covered(image: np.ndarray, box: np.ndarray = BOX, method: str = "blur", dilate: float = DILATE) -> np.ndarray:
    result = image.copy()
    redact_box(result, box, method=method, dilate=dilate, cells=CELLS)
    return result


def with_cells_shuffled(image: np.ndarray, place: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of each cell of a covered box in another order: another face with the same means."""
    left, top, right, bottom = place
    height, width = (bottom - top) // CELLS, (right - left) // CELLS
    shuffled, rng = image.copy(), np.random.default_rng(1)
    for y in range(top, bottom, height):
        for x in range(left, right, width):
            cell = image[y : y + height, x : x + width]
            shuffled[y : y + height, x : x + width] = rng.permutation(cell.reshape(-1, 3)).reshape(cell.shape)
    return shuffled


@pytest.mark.parametrize("method", REDACTION_METHODS)
def test_redaction_changes_nothing_outside_the_box(method: str) -> None:
    image = noise()
    result = image.copy()
    assert redact_box(result, BOX, method=method, dilate=DILATE, cells=CELLS) == COVERED
    left, top, right, bottom = COVERED
    outside = np.ones(image.shape[:2], bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(result[outside], image[outside])
    assert (result[top:bottom, left:right] != image[top:bottom, left:right]).any()


@pytest.mark.parametrize("method", REDACTION_METHODS)
@pytest.mark.parametrize(
    ("box", "dilate", "place"),
    [
        ([60, 40, 140, 120], 1.5, COVERED),
        ([60, 40, 140, 120], MIN_DILATE, (50, 30, 150, 130)),  # the least that `Privacy` takes
        ([-40, 40, 40, 120], 1.5, (0, 20, 60, 140)),  # the image border clips it: no fading there
        ([160, 40, 240, 120], 1.5, (140, 20, 200, 140)),
        ([60, 120, 140, 200], 1.5, (40, 100, 160, 160)),
    ],
)
def test_redacted_pixels_depend_only_on_cell_means(
    method: str, box: list[float], dilate: float, place: tuple[int, int, int, int]
) -> None:
    """The result cannot distinguish the original pixels from any others with these means."""
    image = noise()
    other = with_cells_shuffled(image, place)
    found = np.array(box, dtype=float)
    results = [image.copy(), other.copy()]
    assert [redact_box(r, found, method=method, dilate=dilate, cells=CELLS) for r in results] == [place, place]
    inside = np.s_[max(box[1], 0) : box[3], max(box[0], 0) : box[2]]
    assert (image[inside] != other[inside]).mean() > 0.9
    np.testing.assert_array_equal(results[0][inside], results[1][inside])


def test_fill_is_independent_of_the_content() -> None:
    left, top, right, bottom = COVERED
    assert (covered(noise(), method="fill")[top:bottom, left:right] == GREY).all()


def test_pixelate_shows_the_means() -> None:
    image = noise()
    left, top, right, bottom = COVERED
    inside = covered(image, method="pixelate")[top:bottom, left:right]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) <= CELLS**2
    np.testing.assert_allclose(inside[0, 0], image[top : top + 30, left : left + 30].reshape(-1, 3).mean(0), atol=0.5)


def test_blur_has_no_high_frequencies() -> None:
    """Beyond the frequency of the cells less than a hundredth of the image's energy is left, rounding included."""
    image = noise()
    inside = np.s_[40:120, 60:140]
    window = np.outer(np.hanning(80), np.hanning(80))[..., None]
    for_frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(80), np.fft.fftfreq(80)))
    high = for_frequency > CELLS / 120

    def energy(pixels: np.ndarray) -> float:
        spectrum = np.fft.fft2((pixels - pixels.mean((0, 1))) * window, axes=(0, 1))
        return float((np.abs(spectrum[high]) ** 2).sum())

    assert energy(covered(image)[inside]) < 0.01 * energy(image[inside])


def test_blur_fades_outside_the_detected_box() -> None:
    """No edge for an annotator, and no edge of full strength on the face either."""
    image = np.full((160, 200, 3), 200, np.uint8)
    image[40:120, 60:140] = 20
    result = covered(image).astype(int)
    row = result[80, :, 0]
    assert np.abs(np.diff(row[30:60])).max() < 25
    assert abs(row[40] - 200) <= 5
    full = covered(image, method="pixelate")
    assert full[80, 41, 0] == full[80, 55, 0]


@pytest.mark.parametrize("method", REDACTION_METHODS)
@pytest.mark.parametrize("side", [0.3, 1, 2, 5, 9, 17])
def test_small_boxes(method: str, side: float) -> None:
    image = noise()
    result = image.copy()
    place = redact_box(result, np.array([50, 50, 50 + side, 50 + side]), method=method, dilate=1.4, cells=8)
    assert place is not None
    left, top, right, bottom = place
    assert left <= 50 < right
    assert top <= 50 < bottom
    if method == "pixelate":
        colours = np.unique(result[top:bottom, left:right].reshape(-1, 3), axis=0)
        assert len(colours) <= max(1, (right - left) // MIN_CELL_PX) * max(1, (bottom - top) // MIN_CELL_PX)


@pytest.mark.parametrize("box", [[-50, 0, -20, 30], [300, 10, 320, 40], [10, 200, 40, 240]])
def test_box_outside_the_image_is_ignored(box: list[float]) -> None:
    image = noise()
    result = image.copy()
    assert redact_box(result, np.array(box, dtype=float), method="blur", dilate=1.4, cells=4) is None
    np.testing.assert_array_equal(result, image)


def test_box_larger_than_the_image() -> None:
    result = covered(noise(), np.array([-500.0, -500.0, 900.0, 900.0]), method="pixelate")
    assert len(np.unique(result.reshape(-1, 3), axis=0)) <= CELLS**2


def test_cells_are_never_small() -> None:
    assert cell_means(noise(height=7, width=33), 8).shape == (1, 8, 3)
    assert cell_means(noise(height=8, width=3), 8).shape == (2, 1, 3)
