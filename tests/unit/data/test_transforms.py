"""Tests that masks stay aligned with the image under augmentation, and that a sample without a usable mask is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sam_train.data.transforms import Transform
from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord, MaskRecord

Record = Callable[..., MaskRecord]


def asymmetric_mask(height: int, width: int) -> np.ndarray:
    """Return a mask of an L-shape without any symmetry."""
    mask = np.zeros((height, width), bool)
    mask[height // 8 : height // 2, width // 6 : width // 3] = True
    mask[height // 8 : height // 4, width // 6 : width * 3 // 4] = True
    return mask


def image_record(masks: list[np.ndarray], record: Record) -> ImageRecord:
    height, width = masks[0].shape
    records = [record(mask, mask_id=i) for i, mask in enumerate(masks)]
    return ImageRecord(key="sa_1", image_id=1, width=width, height=height, masks=records)


def image_of_mask(mask: np.ndarray) -> np.ndarray:
    """Return an image that is white in the mask and black elsewhere."""
    return np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255


AUGMENTATIONS: list[dict[str, Any]] = [
    {},
    {"flip": True},
    {"quarter_turns": True},
    {"scale_jitter": (0.3, 0.9)},
    {"scale_jitter": (1.1, 1.5)},
    {"flip": True, "quarter_turns": True, "scale_jitter": (0.5, 2.0)},
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (64, 64), (40, 20)])
def test_masks_stay_aligned_with_the_image(height: int, width: int, augmentation: dict[str, Any], mask_record: Record) -> None:
    mask = asymmetric_mask(height, width)
    transform = Transform(image_size=64, min_area_px=1, **augmentation)
    variants = set()
    for seed in range(12):
        sample = transform(image_of_mask(mask), image_record([mask], mask_record), np.random.default_rng(seed))
        rows, columns = sample.size_hw
        assert sample.image.shape == (64, 64, 3)
        assert sample.masks.shape == (1, 64, 64)
        grey = np.abs(sample.image[..., 0] - 127.5) < 3  # rounding may put an exact half on either side
        assert np.array_equal(sample.masks[0][~grey], sample.image[..., 0][~grey] > 127)
        assert not sample.masks[:, rows:].any()
        assert not sample.masks[:, :, columns:].any()
        assert not sample.image[rows:].any()
        assert not sample.image[:, columns:].any()
        variants.add((sample.size_hw, sample.masks.tobytes()))
    assert len(variants) > 1 if augmentation else len(variants) == 1


def test_longest_side_fills_the_frame_without_augmentation(mask_record: Record) -> None:
    mask = asymmetric_mask(30, 45)
    sample = Transform(image_size=90)(image_of_mask(mask), image_record([mask], mask_record), np.random.default_rng(0))
    assert sample.size_hw == (60, 90)
    assert abs(int(sample.masks.sum()) - 4 * mask.sum()) < 0.05 * 4 * mask.sum()


def test_flips_and_rotations_are_uniform_over_all_eight_poses(mask_record: Record) -> None:
    mask = asymmetric_mask(32, 32)
    transform = Transform(image_size=32, flip=True, quarter_turns=True)
    record = image_record([mask], mask_record)
    drawn = Counter(transform(image_of_mask(mask), record, np.random.default_rng(seed)).masks[0].tobytes() for seed in range(400))
    poses = [np.rot90(m, k) for m in (mask, mask[:, ::-1]) for k in range(4)]
    assert set(drawn) == {np.ascontiguousarray(m).tobytes() for m in poses}
    assert min(drawn.values()) > 25  # of 50 expected


def test_flip_mirrors_left_to_right_only(mask_record: Record) -> None:
    mask = asymmetric_mask(32, 32)
    transform = Transform(image_size=32, flip=True)
    record = image_record([mask], mask_record)
    drawn = {transform(image_of_mask(mask), record, np.random.default_rng(seed)).masks[0].tobytes() for seed in range(20)}
    assert drawn == {mask.tobytes(), np.ascontiguousarray(mask[:, ::-1]).tobytes()}


def test_jitter_is_log_uniform_and_crops_anywhere(mask_record: Record) -> None:
    mask = np.ones((64, 64), bool)
    image = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2) * 4  # the brightness encodes the column
    transform = Transform(image_size=64, scale_jitter=(0.25, 4.0), max_area_fraction=1.0)
    record = image_record([mask], mask_record)
    samples = [transform(image, record, np.random.default_rng(seed)) for seed in range(200)]
    shrunk = [s for s in samples if s.size_hw[0] < 64]
    assert len(shrunk) == pytest.approx(100, abs=20), "as many shrunk as enlarged"
    assert min(s.size_hw[0] for s in shrunk) < 20
    lefts = [int(s.image[0, 0, 0]) for s in samples if s.size_hw[0] == 64]
    assert min(lefts) < 10
    assert max(lefts) > 120


def test_equal_generators_draw_equal_samples(mask_record: Record) -> None:
    record = image_record([asymmetric_mask(40, 60), asymmetric_mask(40, 60)[:, ::-1]], mask_record)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    transform = Transform(image_size=64, max_masks=1, flip=True, quarter_turns=True, scale_jitter=(0.5, 2.0))
    one, other = (transform(image, record, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.masks, other.masks)


def vertical_bars(num: int) -> list[np.ndarray]:
    """Return masks of 64 x 1, 64 x 2, 64 x 3, ... pixels in a 64 x 64 image."""
    masks = [np.zeros((64, 64), bool) for _ in range(num)]
    for i, mask in enumerate(masks):
        mask[:, : i + 1] = True
    return masks


def target_areas(transform: Transform, record: ImageRecord, seed: int = 0) -> list[int]:
    sample = transform(np.zeros((64, 64, 3), np.uint8), record, np.random.default_rng(seed))
    return sorted(sample.masks.sum((1, 2)).tolist())


def test_masks_are_drawn_without_repetition(mask_record: Record) -> None:
    record = image_record(vertical_bars(6), mask_record)
    drawn = [target_areas(Transform(image_size=64, max_masks=4), record, seed) for seed in range(60)]
    assert all(len(set(a)) == 4 for a in drawn)
    assert Counter(a for sample in drawn for a in sample).keys() == {64 * i for i in range(1, 7)}
    assert target_areas(Transform(image_size=64, max_masks=64), record) == [64 * i for i in range(1, 7)]


def test_drops_large_and_small_masks(mask_record: Record) -> None:
    """A mask of exactly either limit is kept."""
    record = image_record(vertical_bars(64), mask_record)
    transform = Transform(image_size=64, max_area_fraction=0.5, min_area_px=3 * 64)
    assert target_areas(transform, record) == [64 * i for i in range(3, 33)]


def test_small_masks_do_not_take_the_place_of_drawn_masks(mask_record: Record) -> None:
    """Of twenty masks the last five are large enough: all five are drawn, whichever come first in the random order."""
    record = image_record(vertical_bars(20), mask_record)
    transform = Transform(image_size=64, max_masks=5, min_area_px=16 * 64)
    for seed in range(10):
        assert target_areas(transform, record, seed) == [64 * i for i in range(16, 21)]


def test_dropped_masks_are_counted_by_option(mask_record: Record) -> None:
    record = image_record(vertical_bars(64), mask_record)
    transform = Transform(image_size=64, max_area_fraction=0.5, min_area_px=3 * 64, max_masks=10)
    sample = transform(np.zeros((64, 64, 3), np.uint8), record, np.random.default_rng(0))
    assert len(sample.masks) == 10
    assert sample.dropped["max_area_fraction"] == 32
    assert sum(sample.dropped.values()) == 54
    assert sample.dropped["max_masks"] >= 20
    everything = Transform(image_size=64, max_area_fraction=0.5, min_area_px=3 * 64)
    assert everything(np.zeros((64, 64, 3), np.uint8), record, np.random.default_rng(0)).dropped == {
        "max_area_fraction": 32,
        "min_area_px": 2,
    }


def test_min_area_is_measured_in_the_model_frame(mask_record: Record) -> None:
    """Two and four columns of a 64 x 64 image have 32 and 64 pixels in a frame of 32 x 32."""
    record = image_record(vertical_bars(4)[1::2], mask_record)
    assert target_areas(Transform(image_size=32, min_area_px=32), record) == [32, 64]
    assert target_areas(Transform(image_size=32, min_area_px=33), record) == [64]


@pytest.mark.parametrize(
    ("masks", "values", "reason"),
    [
        ([np.ones((64, 64), bool)], {}, "masks_too_large"),
        ([np.zeros((64, 64), bool)], {}, "no_mask"),
        (vertical_bars(2), {"min_area_px": 200}, "masks_too_small"),
    ],
    ids=["too large", "empty", "too small"],
)
def test_skips_a_sample_without_a_usable_mask(
    masks: list[np.ndarray], values: dict[str, Any], reason: str, mask_record: Record
) -> None:
    with pytest.raises(SkipSampleError, match="key sa_1") as skip:
        target_areas(Transform(image_size=64, **values), image_record(masks, mask_record))
    assert skip.value.reason == reason
    assert reason not in str(skip.value), "the message explains it"


def test_skips_an_image_without_masks() -> None:
    with pytest.raises(SkipSampleError) as skip:
        target_areas(Transform(image_size=64), ImageRecord(key="sa_1", image_id=1, width=64, height=64, masks=[]))
    assert skip.value.reason == "no_mask"


def test_mask_of_another_image_size_is_an_error(mask_record: Record) -> None:
    other_size = mask_record(asymmetric_mask(20, 30))
    with pytest.raises(ShardError, match=r"RLE size \[20, 30\] is not the image's \[64, 64\]") as error:
        target_areas(Transform(image_size=64), ImageRecord(key="sa_1", image_id=1, width=64, height=64, masks=[other_size]))
    assert not isinstance(error.value, SkipSampleError)


@pytest.mark.parametrize("values", [{"min_area_px": 0}, {"max_masks": 0}])
def test_rejects_values_below_one(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} 0"):
        Transform(image_size=64, **values)


@pytest.mark.parametrize("factors", [(0.0, 1.0), (2.0, 1.0)])
def test_rejects_invalid_jitter(factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="scale_jitter"):
        Transform(image_size=64, scale_jitter=factors)
