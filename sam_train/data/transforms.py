"""Transform of a sample to the model frame: choose masks, augment, resize, pad.

SA-1B is trained without augmentation; large-scale jitter is the paper's for stages one and two (section B). Flips and quarter
turns are not in the paper; training from scratch on a small dataset needs them.

All random choices are drawn first, as `TransformParams`. They determine the scale at which the JPEG is decoded, and which
masks are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam_train.data.jpeg_decoding import decode_jpeg_reduced, read_jpeg_size, resize_decoded
from sam_train.data.mask_crops import MaskCrop, MaskCrops
from sam_train.data.mask_targets import resize_rles
from sam_train.data.record_parser import TargetRecord
from sam_train.errors import SkipSampleError
from sam_train.geometry import Resize, pad_to_square
from sam_train.records import ImageRecord
from sam_train.shards import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One image in the model frame of side S with its N masks."""

    key: str
    unpadded_image: np.ndarray
    """h x w x 3 uint8 RGB, at most S x S. The rest of the frame, at the right and the bottom, is padding."""
    image_size: int
    """Side S of the model frame."""
    mask_crops: MaskCrops
    """The N masks, in the frame of the image."""
    skipped: tuple[str, ...]
    """Reasons for which the samples before this one were skipped."""
    names: tuple[str, ...] | None = None
    """Name of each mask, "" if it has none; None if names are not loaded."""
    text_embeddings: np.ndarray | None = None
    """N x E text embeddings of the masks; None if the dataset has no `text_store`."""
    source: tuple[int, Sample] | None = None
    """The stored sample and its number from 1, in validation; None in training and if it cannot be read."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Number of masks of the image that are not among the N, by the option that dropped them (DROPPING_OPTIONS)."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image inside the frame."""
        return self.unpadded_image.shape[0], self.unpadded_image.shape[1]

    @property
    def image(self) -> np.ndarray:
        """The padded image, S x S x 3 uint8."""
        return pad_to_square(self.unpadded_image, self.image_size)

    @property
    def masks(self) -> np.ndarray:
        """The masks in the model frame, N x S x S bool."""
        masks = np.zeros((len(self.mask_crops), self.image_size, self.image_size), bool)
        for crop, mask in zip(self.mask_crops, masks, strict=True):
            crop.paste_into(mask)
        return masks

    @staticmethod
    def from_masks(key: str, image: np.ndarray, masks: np.ndarray, *, skipped: tuple[str, ...] = ()) -> TrainingSample:
        """Return a sample of an h x w x 3 image and N x S x S bool masks that are already in the model frame."""
        crops = MaskCrops.from_crops(MaskCrop.from_mask(mask) for mask in masks)
        return TrainingSample(key=key, unpadded_image=image, image_size=masks.shape[-1], mask_crops=crops, skipped=skipped)

    @staticmethod
    def empty(key: str, image_size: int, reason: str, *, names: bool = False) -> TrainingSample:
        """Return a black image without masks, in place of an unusable sample; `names` is the Transform's `load_names`."""
        return TrainingSample(
            key=key,
            unpadded_image=np.zeros((image_size, image_size, 3), np.uint8),
            image_size=image_size,
            mask_crops=MaskCrops.from_crops([]),
            skipped=(reason,),
            names=() if names else None,
        )


DROPPING_OPTIONS = ("max_area_fraction", "min_area_px", "max_masks")
"""Options of `Transform` that drop masks, in the order in which they apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformParams:
    """The random choices for one sample."""

    order: Sequence[int]
    """Indices of the masks that are not too large, in the random order in which they are taken."""
    scaled_hw: tuple[int, int]
    """Height and width to which the image is resized, before it is rotated."""
    turns: int
    """Number of quarter turns, as in `np.rot90`."""
    flip: bool
    """True if the image is mirrored left to right, after the rotation."""
    window: tuple[int, int]
    """First row and column of the S x S crop window in the resized and rotated image."""

    @property
    def rotated_hw(self) -> tuple[int, int]:
        """Height and width of the resized image after its rotation."""
        return self.scaled_hw if self.turns % 2 == 0 else self.scaled_hw[::-1]


@dataclass(frozen=True, slots=True)
class _ChosenMasks:
    indices: Sequence[int]
    crops: MaskCrops
    dropped: Mapping[str, int]


class Transform:
    """Transforms an image and its record to a TrainingSample.

    image_size: side S of the model frame.
    max_area_fraction: masks that cover more of the image are dropped (paper: 0.9).
    min_area_px: masks with fewer pixels in the model frame are dropped: at least 1, because no click can be drawn in an empty
        target.
    max_masks: number of masks drawn at random from those that are left (paper: 64 a GPU).
    scale_jitter: range of the factor on the scale that resizes the longest side to S; a factor above 1 crops a random window.
        (1, 1) is no jitter, (0.1, 2) the paper's large-scale jitter.
    flip, quarter_turns: random mirroring, random rotation by multiples of 90 degrees.
    load_names: also read the names of the masks.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        *,
        image_size: int,
        max_masks: int = 64,
        max_area_fraction: float = 0.9,
        min_area_px: int = 16,
        scale_jitter: tuple[float, float] = (1.0, 1.0),
        flip: bool = False,
        quarter_turns: bool = False,
        load_names: bool = False,
    ) -> None:
        if min_area_px < 1 or max_masks < 1:
            raise ValueError(f"min_area_px {min_area_px} and max_masks {max_masks} must be at least 1")
        if not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise ValueError(f"scale_jitter {tuple(scale_jitter)} must be two factors above 0, the smaller one first")
        self.image_size, self.max_masks = image_size, max_masks
        self.max_area_fraction, self.min_area_px = max_area_fraction, min_area_px
        self.scale_jitter, self.flip, self.quarter_turns = (scale_jitter[0], scale_jitter[1]), flip, quarter_turns
        self.load_names = load_names

    def __call__(
        self, image: np.ndarray, record: ImageRecord, rng: np.random.Generator, *, skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """Transform the pixels of an image and its record.

        Raises SkipSampleError if no mask is left, and ShardError for an RLE of another size than the record's.
        """
        target_record = TargetRecord.from_image_record(record, names=self.load_names)
        params = self.draw_params(target_record, rng)
        chosen = self._choose_masks(target_record, params)
        self._check_not_empty(target_record, chosen)
        return self._sample(image, target_record, params, chosen, skipped)

    def from_jpeg(
        self, jpeg: bytes, record: TargetRecord, rng: np.random.Generator, *, shard: str = "", skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """Transform a JPEG and its record. Raises as `__call__`, `read_jpeg_size` and `decode_jpeg_reduced` do."""
        params = self.draw_params(record, rng)
        read_jpeg_size(jpeg, record, shard=shard)
        # Before the image, while the record is still in the CPU's cache: decoding evicts it.
        chosen = self._choose_masks(record, params)
        self._check_not_empty(record, chosen)
        image = decode_jpeg_reduced(jpeg, record, *params.scaled_hw, shard=shard)
        return self._sample(image, record, params, chosen, skipped)

    def count_masks(self, record: TargetRecord, rng: np.random.Generator) -> tuple[int, Mapping[str, int]]:
        """Return the number of masks that a sample of this record would have, and how many each option drops."""
        chosen = self._choose_masks(record, self.draw_params(record, rng))
        return len(chosen.indices), chosen.dropped

    def draw_params(self, record: TargetRecord, rng: np.random.Generator) -> TransformParams:
        """Draw all random choices."""
        order = self._draw_order(record, rng)
        turns = int(rng.integers(4)) if self.quarter_turns else 0
        flip = self.flip and rng.random() < 0.5
        low, high = self.scale_jitter
        factor = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        height, width = Resize(record.height, record.width, max(1, round(self.image_size * factor))).scaled_hw
        rows, columns = (height, width) if turns % 2 == 0 else (width, height)
        top = int(rng.integers(max(0, rows - self.image_size) + 1))
        left = int(rng.integers(max(0, columns - self.image_size) + 1))
        return TransformParams(order=order, scaled_hw=(height, width), turns=turns, flip=flip, window=(top, left))

    def _draw_order(self, record: TargetRecord, rng: np.random.Generator) -> list[int]:
        limit = self.max_area_fraction * record.width * record.height
        eligible = [i for i, area in enumerate(record.areas) if 0 < area <= limit]
        return [eligible[i] for i in rng.permutation(len(eligible))]

    def _choose_masks(self, record: TargetRecord, params: TransformParams) -> _ChosenMasks:
        """Return the first `max_masks` masks of the drawn order that are large enough, as crops in the model frame.

        The result is a random choice among all masks that are large enough; only as many masks are resized as that takes.
        """
        indices: list[int] = []
        crops: list[MaskCrops] = []
        num_small = start = 0
        while len(indices) < self.max_masks and start < len(params.order):
            part = params.order[start : start + self.max_masks - len(indices)]
            rles = [record.rles[i] for i in part]
            resized = resize_rles(rles, (record.height, record.width), params.scaled_hw, key=record.key)
            augmented = self._augment_masks(resized, params)
            large = [i for i, area in zip(part, augmented.areas, strict=True) if area >= self.min_area_px]
            indices, num_small, start = indices + large, num_small + len(part) - len(large), start + len(part)
            crops.append(augmented.with_min_area(self.min_area_px))
        num_empty = sum(area <= 0 for area in record.areas)
        num_large = len(record.areas) - len(params.order) - num_empty
        counts = (num_large, num_small + num_empty, len(params.order) - start)
        dropped = {option: num for option, num in zip(DROPPING_OPTIONS, counts, strict=True) if num}
        return _ChosenMasks(indices, MaskCrops.concatenate(crops), dropped)

    def _check_not_empty(self, record: TargetRecord, chosen: _ChosenMasks) -> None:
        """Raise SkipSampleError if no mask is left."""
        if chosen.indices:
            return
        num, num_large = len(record.areas), chosen.dropped.get("max_area_fraction", 0)
        if not any(record.areas):
            raise SkipSampleError("no_mask", "its masks are empty" if num else "the image has no masks", key=record.key)
        if num == num_large:
            problem = f"each of its {num} masks covers more than data.max_area_fraction={self.max_area_fraction} of the image"
            raise SkipSampleError("masks_too_large", problem, key=record.key)
        problem = f"none of its {num} masks has data.min_area_px={self.min_area_px} pixels in the model frame"
        problem += f" (data.image_size={self.image_size})"
        raise SkipSampleError("masks_too_small", problem, key=record.key)

    def _sample(
        self, image: np.ndarray, record: TargetRecord, params: TransformParams, chosen: _ChosenMasks, skipped: tuple[str, ...]
    ) -> TrainingSample:
        rotated = np.rot90(resize_decoded(image, *params.scaled_hw), params.turns)
        flipped = rotated[:, ::-1] if params.flip else rotated
        top, left = params.window
        names, text_embeddings = record.names, record.text_embeddings
        return TrainingSample(
            key=record.key,
            unpadded_image=np.ascontiguousarray(flipped[top : top + self.image_size, left : left + self.image_size]),
            image_size=self.image_size,
            mask_crops=chosen.crops,
            skipped=skipped,
            names=None if names is None else tuple(names[i] for i in chosen.indices),
            text_embeddings=None if text_embeddings is None else text_embeddings[chosen.indices],
            dropped=chosen.dropped,
        )

    def _augment_masks(self, crops: MaskCrops, params: TransformParams) -> MaskCrops:
        """Rotate, flip and crop masks of the resized image to the window."""
        if not params.turns and not params.flip and max(params.scaled_hw) <= self.image_size:
            return crops
        rotated = (crop.rot90(params.turns, params.scaled_hw) for crop in crops)
        flipped = (crop.flip(params.rotated_hw[1]) if params.flip else crop for crop in rotated)
        window = (*params.window, self.image_size, self.image_size)
        return MaskCrops.from_crops(crop.clip_to_window(*window) for crop in flipped)
