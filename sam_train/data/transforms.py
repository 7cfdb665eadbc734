"""Transform of a sample to the model frame: choose masks, augment, resize, pad.

SA-1B is trained without augmentation; large-scale jitter is the paper's for stages one and two (section B). Flips and quarter
turns are not in the paper; training from scratch on a small dataset needs them.

All random choices are drawn first, as `TransformParams`. They determine the scale at which the JPEG is decoded, and which
masks are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sam_train.data.jpeg_decoding import decode_jpeg_reduced, read_jpeg_size, resize_decoded
from sam_train.data.mask_crops import MaskCrop, MaskCrops
from sam_train.data.mask_targets import resize_rles
from sam_train.data.record_parser import TargetRecord
from sam_train.errors import SkipSampleError
from sam_train.geometry import Resize, pad_to_square
from sam_train.records import ImageRecord, Rle


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformParams:
    """The random choices for one sample."""

    rles: tuple[Rle, ...]
    """The chosen masks."""
    scaled_hw: tuple[int, int]
    """Height and width to which the image is resized, before it is rotated."""
    turns: int
    """Number of quarter turns, as in `np.rot90`."""
    flip: bool
    """True if the image is mirrored left to right, after the rotation."""
    window: tuple[int, int]
    """First row and column of the S x S crop window in the resized and rotated image."""
    names: tuple[str, ...] | None = None
    """Names of the masks, if they are loaded."""
    text_embeddings: np.ndarray | None = None
    """N x E text embeddings of the masks, if the record has them."""

    def select_masks(self, keep: np.ndarray) -> TransformParams:
        """Return the parameters for the masks for which `keep` (N bool) is true."""
        if keep.all():
            return self
        rles = tuple(rle for rle, is_kept in zip(self.rles, keep, strict=True) if is_kept)
        names = self.names and tuple(name for name, is_kept in zip(self.names, keep, strict=True) if is_kept)
        text_embeddings = None if self.text_embeddings is None else self.text_embeddings[keep]
        return replace(self, rles=rles, names=names, text_embeddings=text_embeddings)

    @property
    def rotated_hw(self) -> tuple[int, int]:
        """Height and width of the resized image after its rotation."""
        return self.scaled_hw if self.turns % 2 == 0 else self.scaled_hw[::-1]


class Transform:
    """Transforms an image and its record to a TrainingSample.

    image_size: side S of the model frame.
    max_masks: number of masks drawn at random from each image (paper: 64 a GPU).
    max_area_fraction: masks that cover more of the image are dropped (paper: 0.9).
    min_area_px: masks with fewer pixels in the model frame are dropped: at least 1, because no click can be drawn in an empty
        target.
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
        params, crops = self._mask_crops(target_record, self.draw_params(target_record, rng))
        return self._sample(image, target_record, params, crops, skipped)

    def from_jpeg(
        self, jpeg: bytes, record: TargetRecord, rng: np.random.Generator, *, shard: str = "", skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """Transform a JPEG and its record. Raises as `__call__`, `read_jpeg_size` and `decode_jpeg_reduced` do."""
        params = self.draw_params(record, rng)
        read_jpeg_size(jpeg, record, shard=shard)
        # Before the image, while the record is still in the CPU's cache: decoding evicts it.
        params, crops = self._mask_crops(record, params)
        image = decode_jpeg_reduced(jpeg, record, *params.scaled_hw, shard=shard)
        return self._sample(image, record, params, crops, skipped)

    def draw_params(self, record: TargetRecord, rng: np.random.Generator) -> TransformParams:
        """Draw all random choices. Raises SkipSampleError("no_mask") if there is no mask to choose."""
        indices = self._draw_masks(record, rng)
        turns = int(rng.integers(4)) if self.quarter_turns else 0
        flip = self.flip and rng.random() < 0.5
        low, high = self.scale_jitter
        factor = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        height, width = Resize(record.height, record.width, max(1, round(self.image_size * factor))).scaled_hw
        rows, columns = (height, width) if turns % 2 == 0 else (width, height)
        top = int(rng.integers(max(0, rows - self.image_size) + 1))
        left = int(rng.integers(max(0, columns - self.image_size) + 1))
        return TransformParams(
            rles=tuple(record.rles[i] for i in indices),
            names=None if record.names is None else tuple(record.names[i] for i in indices),
            text_embeddings=None if record.text_embeddings is None else record.text_embeddings[indices],
            scaled_hw=(height, width),
            turns=turns,
            flip=flip,
            window=(top, left),
        )

    def _draw_masks(self, record: TargetRecord, rng: np.random.Generator) -> list[int]:
        """Return the indices of the chosen masks in the record."""
        limit = self.max_area_fraction * record.width * record.height
        eligible = [i for i, area in enumerate(record.areas) if 0 < area <= limit]
        if not eligible:
            raise SkipSampleError("no_mask", key=record.key)
        return [eligible[i] for i in rng.permutation(len(eligible))[: self.max_masks]]

    def _mask_crops(self, record: TargetRecord, params: TransformParams) -> tuple[TransformParams, MaskCrops]:
        """Return the masks that are large enough, as crops in the model frame, and the parameters for these alone."""
        resized = resize_rles(params.rles, (record.height, record.width), params.scaled_hw, key=record.key)
        crops = self._augment_masks(resized, params)
        kept = crops.with_min_area(self.min_area_px)
        if not len(kept):
            raise SkipSampleError("no_mask_left", key=record.key)
        return params.select_masks(crops.areas >= self.min_area_px), kept

    def _sample(
        self, image: np.ndarray, record: TargetRecord, params: TransformParams, crops: MaskCrops, skipped: tuple[str, ...]
    ) -> TrainingSample:
        rotated = np.rot90(resize_decoded(image, *params.scaled_hw), params.turns)
        flipped = rotated[:, ::-1] if params.flip else rotated
        top, left = params.window
        return TrainingSample(
            key=record.key,
            unpadded_image=np.ascontiguousarray(flipped[top : top + self.image_size, left : left + self.image_size]),
            image_size=self.image_size,
            mask_crops=crops,
            skipped=skipped,
            names=params.names,
            text_embeddings=params.text_embeddings,
        )

    def _augment_masks(self, crops: MaskCrops, params: TransformParams) -> MaskCrops:
        """Rotate, flip and crop masks of the resized image to the window."""
        if not params.turns and not params.flip and max(params.scaled_hw) <= self.image_size:
            return crops
        rotated = (crop.rot90(params.turns, params.scaled_hw) for crop in crops)
        flipped = (crop.flip(params.rotated_hw[1]) if params.flip else crop for crop in rotated)
        window = (*params.window, self.image_size, self.image_size)
        return MaskCrops.from_crops(crop.clip_to_window(*window) for crop in flipped)
