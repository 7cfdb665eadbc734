"""From a sample to the model frame: choose masks, augment, resize, pad.

SA-1B is trained without augmentation; large-scale jitter is the paper's for stages one and two (section B). Flips
and quarter turns are not in the paper; small sets from which a model starts anew want them.

All that is random is drawn first, as a `Plan`: it says how large the picture must be, so that the JPEG is decoded no
larger, and which masks are decoded at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam_train.data.pictures import decode_for, fit_picture
from sam_train.data.targets import Patch, patch_of, resize_rles
from sam_train.errors import SkipSample
from sam_train.geometry import Resize, pad_to_square
from sam_train.records import ImageRecord, MaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One image in the model frame of side S with its N masks, and why samples before it were passed over."""

    key: str
    picture: np.ndarray
    """h x w x 3 uint8 RGB, at most S x S: the rest of the frame, at the right and the bottom, is zeros."""
    image_size: int
    """S."""
    patches: tuple[Patch, ...]
    """N masks, in the frame of the picture."""
    skipped: tuple[str, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the picture inside the frame."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def image(self) -> np.ndarray:
        """S x S x 3 uint8: the picture, padded."""
        return pad_to_square(self.picture, self.image_size)

    @property
    def masks(self) -> np.ndarray:
        """N x S x S bool."""
        masks = np.zeros((len(self.patches), self.image_size, self.image_size), bool)
        for patch, mask in zip(self.patches, masks, strict=True):
            patch.paint(mask)
        return masks

    @staticmethod
    def of(key: str, picture: np.ndarray, masks: np.ndarray, *, skipped: tuple[str, ...] = ()) -> TrainingSample:
        """A picture of h x w x 3 with N x S x S bool masks that are already in the model frame."""
        patches = tuple(patch_of(mask) for mask in masks)
        return TrainingSample(key=key, picture=picture, image_size=masks.shape[-1], patches=patches, skipped=skipped)

    @staticmethod
    def empty(key: str, image_size: int, reason: str) -> TrainingSample:
        """A black picture without masks, in the place of a sample that cannot be used."""
        picture = np.zeros((image_size, image_size, 3), np.uint8)
        return TrainingSample(key=key, picture=picture, image_size=image_size, patches=(), skipped=(reason,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was drawn for one sample."""

    masks: tuple[MaskRecord, ...]
    scaled_hw: tuple[int, int]
    """Height and width to which the picture is resized, before it is turned."""
    turns: int
    """Quarter turns as np.rot90 counts them."""
    flip: bool
    """Mirrored left to right, after the turns."""
    window: tuple[int, int]
    """First row and column, of the resized and turned picture, of the S x S pixels that are kept."""


class Transform:
    """From JPEG and record, or `__call__` on pixels and record, to a TrainingSample.

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
        """Raises SkipSample when no mask is left, and ShardError for an RLE that does not fit the record's size."""
        return self._sample(image, record, self.plan(record, rng), skipped)

    def from_jpeg(
        self, jpeg: bytes, record: ImageRecord, rng: np.random.Generator, *, shard: str = "", skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """As `__call__`; raises what `pictures.decode_for` does too."""
        plan = self.plan(record, rng)
        return self._sample(decode_for(jpeg, record, *plan.scaled_hw, shard=shard), record, plan, skipped)

    def plan(self, record: ImageRecord, rng: np.random.Generator) -> Plan:
        """Draw all that is random. Raises SkipSample("no_mask") when there is none to draw."""
        masks = self._draw_masks(record, rng)
        turns = int(rng.integers(4)) if self.quarter_turns else 0
        flip = self.flip and rng.random() < 0.5
        low, high = self.scale_jitter
        factor = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        height, width = Resize(record.height, record.width, max(1, round(self.image_size * factor))).scaled_hw
        rows, columns = (height, width) if turns % 2 == 0 else (width, height)
        top = int(rng.integers(max(0, rows - self.image_size) + 1))
        left = int(rng.integers(max(0, columns - self.image_size) + 1))
        return Plan(masks=masks, scaled_hw=(height, width), turns=turns, flip=flip, window=(top, left))

    def _draw_masks(self, record: ImageRecord, rng: np.random.Generator) -> tuple[MaskRecord, ...]:
        limit = self.max_area_fraction * record.width * record.height
        wanted = [mask for mask in record.masks if 0 < mask.area <= limit]
        if not wanted:
            raise SkipSample("no_mask", key=record.key)
        return tuple(wanted[i] for i in rng.permutation(len(wanted))[: self.max_masks])

    def _sample(self, image: np.ndarray, record: ImageRecord, plan: Plan, skipped: tuple[str, ...]) -> TrainingSample:
        rles = [mask.segmentation for mask in plan.masks]
        patches = resize_rles(rles, (record.height, record.width), plan.scaled_hw, key=record.key)
        placed = (self._placed(patch, plan) for patch in patches)
        kept = tuple(patch for patch in placed if np.count_nonzero(patch.pixels) >= self.min_area_px)
        if not kept:
            raise SkipSample("no_mask_left", key=record.key)
        picture = np.rot90(fit_picture(image, *plan.scaled_hw), plan.turns)
        picture = picture[:, ::-1] if plan.flip else picture
        top, left = plan.window
        window = np.ascontiguousarray(picture[top : top + self.image_size, left : left + self.image_size])
        return TrainingSample(key=record.key, picture=window, image_size=self.image_size, patches=kept, skipped=skipped)

    def _placed(self, patch: Patch, plan: Plan) -> Patch:
        """From the frame of the resized picture to the window that is kept."""
        turned = patch.rot90(plan.turns, plan.scaled_hw)
        turned = turned.mirrored(plan.scaled_hw[1 - plan.turns % 2]) if plan.flip else turned
        return turned.cut(*plan.window, self.image_size, self.image_size)
