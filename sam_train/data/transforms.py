"""From a decoded sample to the model frame: choose masks, augment, resize, pad.

SA-1B is trained without augmentation; large-scale jitter is the paper's for stages one and two (section B). Flips
and quarter turns are not in the paper; small sets from which a model starts anew want them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.errors import SkipSample
from sam_train.geometry import Resize, pad_to_square, resize_image, resize_masks
from sam_train.masks import decode_rle
from sam_train.records import ImageRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One image in the model frame of side S with its N masks, and why samples before it were passed over."""

    key: str
    image: np.ndarray
    """S x S x 3 uint8 RGB, padded with zeros at the right and the bottom."""
    size_hw: tuple[int, int]
    """Height and width of the picture inside the frame."""
    masks: np.ndarray
    """N x S x S bool."""
    skipped: tuple[str, ...]

    @staticmethod
    def empty(key: str, image_size: int, reason: str) -> TrainingSample:
        """A black picture without masks, in the place of a sample that cannot be used."""
        return TrainingSample(
            key=key,
            image=np.zeros((image_size, image_size, 3), np.uint8),
            size_hw=(image_size, image_size),
            masks=np.zeros((0, image_size, image_size), bool),
            skipped=(reason,),
        )


class Transform:
    """Callable on (image, record, rng).

    image_size: side S of the model frame.
    max_masks: masks drawn at random from each image (paper: 64 a GPU).
    max_area_fraction: masks that cover more of the image are dropped (paper: 0.9).
    min_area_px: masks with fewer pixels in the model frame are dropped: at least 1, an empty target has no click.
    scale_jitter: range of the factor on "longest side to S"; above 1 a random window is cut. (1, 1) is none,
        (0.1, 2) the paper's large-scale jitter.
    flip, quarter_turns: random mirror image, random rotation by multiples of 90 degrees.
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
    ) -> None:
        if min_area_px < 1 or max_masks < 1:
            raise ValueError(f"min_area_px {min_area_px} and max_masks {max_masks} must be at least 1")
        if not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise ValueError(f"scale_jitter {tuple(scale_jitter)} must be two factors above 0, the smaller one first")
        self.image_size, self.max_masks = image_size, max_masks
        self.max_area_fraction, self.min_area_px = max_area_fraction, min_area_px
        self.scale_jitter, self.flip, self.quarter_turns = (scale_jitter[0], scale_jitter[1]), flip, quarter_turns

    def __call__(
        self, image: np.ndarray, record: ImageRecord, rng: np.random.Generator, *, skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """Raises SkipSample when no mask is left, and ShardError for an RLE that does not fit the image."""
        masks = self._draw_masks(record, rng)
        image, masks = self._turn(image, masks, rng)
        image, masks = self._scale(image, masks, rng)
        masks = masks[masks.sum((1, 2)) >= self.min_area_px]
        if not len(masks):
            raise SkipSample("no_mask_left", key=record.key)
        height, width = image.shape[:2]
        padded = np.zeros((len(masks), self.image_size, self.image_size), bool)
        padded[:, :height, :width] = masks
        return TrainingSample(
            key=record.key,
            image=pad_to_square(image, self.image_size),
            size_hw=(height, width),
            masks=padded,
            skipped=skipped,
        )

    def _draw_masks(self, record: ImageRecord, rng: np.random.Generator) -> np.ndarray:
        limit = self.max_area_fraction * record.width * record.height
        wanted = [mask for mask in record.masks if 0 < mask.area <= limit]
        if not wanted:
            raise SkipSample("no_mask", key=record.key)
        drawn = rng.permutation(len(wanted))[: self.max_masks]
        height, width = record.height, record.width
        return np.stack([decode_rle(wanted[i].segmentation, height=height, width=width, key=record.key) for i in drawn])

    def _turn(self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.quarter_turns:
            turns = int(rng.integers(4))
            image, masks = np.rot90(image, turns), np.rot90(masks, turns, axes=(1, 2))
        if self.flip and rng.random() < 0.5:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
        return np.ascontiguousarray(image), np.ascontiguousarray(masks)

    def _scale(self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Longest side to S times the jitter, then a random window of at most S x S."""
        low, high = self.scale_jitter
        factor = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        longest = max(1, round(self.image_size * factor))
        height, width = Resize(image.shape[0], image.shape[1], longest).scaled_hw
        image, masks = resize_image(image, height, width), resize_masks(masks, height, width)
        top = int(rng.integers(max(0, height - self.image_size) + 1))
        left = int(rng.integers(max(0, width - self.image_size) + 1))
        window = np.s_[top : top + self.image_size, left : left + self.image_size]
        return image[window], masks[:, window[0], window[1]]
