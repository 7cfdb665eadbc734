"""From a sample to the model frame: choose masks, augment, resize, pad.

SA-1B is trained without augmentation; large-scale jitter is the paper's for stages one and two (section B). Flips
and quarter turns are not in the paper; small sets from which a model starts anew want them.

All that is random is drawn first, as a `TransformParams`: it says how large the picture must be, so that the JPEG is decoded no
larger, and which masks are decoded at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sam_train.data.jpeg_decoding import decode_jpeg_reduced, read_jpeg_size, resize_decoded
from sam_train.data.mask_crops import MaskCrops, crop_mask
from sam_train.data.mask_targets import resize_rles
from sam_train.data.record_parser import TargetRecord
from sam_train.errors import SkipSampleError
from sam_train.geometry import Resize, pad_to_square
from sam_train.records import ImageRecord, Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One image in the model frame of side S with its N masks, and why samples before it were passed over."""

    key: str
    picture: np.ndarray
    """h x w x 3 uint8 RGB, at most S x S: the rest of the frame, at the right and the bottom, is zeros."""
    image_size: int
    """S."""
    patches: MaskCrops
    """N masks, in the frame of the picture."""
    skipped: tuple[str, ...]
    names: tuple[str, ...] | None = None
    """What each mask shows, empty where nobody said; None where the Transform does not ask."""
    text_embeddings: np.ndarray | None = None
    """N x E, of the words of each mask; None where the record came without."""

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
    def from_masks(key: str, picture: np.ndarray, masks: np.ndarray, *, skipped: tuple[str, ...] = ()) -> TrainingSample:
        """A picture of h x w x 3 with N x S x S bool masks that are already in the model frame."""
        patches = MaskCrops.from_crops(crop_mask(mask) for mask in masks)
        return TrainingSample(key=key, picture=picture, image_size=masks.shape[-1], patches=patches, skipped=skipped)

    @staticmethod
    def empty(key: str, image_size: int, reason: str, *, names: bool = False) -> TrainingSample:
        """A black picture without masks, in the place of a sample that cannot be used; `names` as the Transform's."""
        picture, patches = np.zeros((image_size, image_size, 3), np.uint8), MaskCrops.from_crops([])
        none: tuple[str, ...] | None = () if names else None
        return TrainingSample(key=key, picture=picture, image_size=image_size, patches=patches, skipped=(reason,), names=none)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformParams:
    """What was drawn for one sample."""

    rles: tuple[Rle, ...]
    scaled_hw: tuple[int, int]
    """Height and width to which the picture is resized, before it is turned."""
    turns: int
    """Quarter turns as np.rot90 counts them."""
    flip: bool
    """Mirrored left to right, after the turns."""
    window: tuple[int, int]
    """First row and column, of the resized and turned picture, of the S x S pixels that are kept."""
    names: tuple[str, ...] | None = None
    """Of the masks, where they are asked for."""
    text_embeddings: np.ndarray | None = None
    """N x E, of the masks, where the record has them."""

    def of_masks(self, wanted: np.ndarray) -> TransformParams:
        """For those of its masks for which `wanted` (N bool) is true."""
        rles = tuple(rle for rle, is_wanted in zip(self.rles, wanted, strict=True) if is_wanted)
        names = self.names and tuple(name for name, is_wanted in zip(self.names, wanted, strict=True) if is_wanted)
        texts = None if self.text_embeddings is None else self.text_embeddings[wanted]
        return self if wanted.all() else replace(self, rles=rles, names=names, text_embeddings=texts)

    @property
    def turned_hw(self) -> tuple[int, int]:
        """Height and width of the resized picture after its turns."""
        return self.scaled_hw if self.turns % 2 == 0 else self.scaled_hw[::-1]


class Transform:
    """From JPEG and record, or `__call__` on pixels and record, to a TrainingSample.

    image_size: side S of the model frame.
    max_masks: masks drawn at random from each image (paper: 64 a GPU).
    max_area_fraction: masks that cover more of the image are dropped (paper: 0.9).
    min_area_px: masks with fewer pixels in the model frame are dropped: at least 1, an empty target has no click.
    scale_jitter: range of the factor on "longest side to S"; above 1 a random window is cut. (1, 1) is none,
        (0.1, 2) the paper's large-scale jitter.
    flip, quarter_turns: random mirror image, random rotation by multiples of 90 degrees.
    names: what each mask shows is read, too, and goes with it.
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
        """Raises SkipSampleError when no mask is left, and ShardError for an RLE that does not fit the record's size."""
        outlines = TargetRecord.from_image_record(record, names=self.load_names)
        plan, patches = self._patches(outlines, self.plan(outlines, rng))
        return self._sample(image, outlines, plan, patches, skipped)

    def from_jpeg(
        self, jpeg: bytes, record: TargetRecord, rng: np.random.Generator, *, shard: str = "", skipped: tuple[str, ...] = ()
    ) -> TrainingSample:
        """As `__call__`; raises what `pictures.read_jpeg_size` and `decode_jpeg_reduced` do too."""
        plan = self.plan(record, rng)
        read_jpeg_size(jpeg, record, shard=shard)
        plan, patches = self._patches(
            record, plan
        )  # now, as the record was just read: a picture leaves nothing in the CPU's cache
        return self._sample(decode_jpeg_reduced(jpeg, record, *plan.scaled_hw, shard=shard), record, plan, patches, skipped)

    def plan(self, record: TargetRecord, rng: np.random.Generator) -> TransformParams:
        """Draw all that is random. Raises SkipSampleError("no_mask") when there is none to draw."""
        drawn = self._draw_masks(record, rng)
        turns = int(rng.integers(4)) if self.quarter_turns else 0
        flip = self.flip and rng.random() < 0.5
        low, high = self.scale_jitter
        factor = low if low == high else float(np.exp(rng.uniform(np.log(low), np.log(high))))
        height, width = Resize(record.height, record.width, max(1, round(self.image_size * factor))).scaled_hw
        rows, columns = (height, width) if turns % 2 == 0 else (width, height)
        top = int(rng.integers(max(0, rows - self.image_size) + 1))
        left = int(rng.integers(max(0, columns - self.image_size) + 1))
        rles = tuple(record.rles[i] for i in drawn)
        names = None if record.names is None else tuple(record.names[i] for i in drawn)
        texts = None if record.text_embeddings is None else record.text_embeddings[drawn]
        return TransformParams(
            rles=rles,
            names=names,
            text_embeddings=texts,
            scaled_hw=(height, width),
            turns=turns,
            flip=flip,
            window=(top, left),
        )

    def _draw_masks(self, record: TargetRecord, rng: np.random.Generator) -> list[int]:
        """Places in the record."""
        limit = self.max_area_fraction * record.width * record.height
        wanted = [i for i, area in enumerate(record.areas) if 0 < area <= limit]
        if not wanted:
            raise SkipSampleError("no_mask", key=record.key)
        return [wanted[i] for i in rng.permutation(len(wanted))[: self.max_masks]]

    def _patches(self, record: TargetRecord, plan: TransformParams) -> tuple[TransformParams, MaskCrops]:
        """The masks that are trained on, in the window that is kept, and the plan for these alone."""
        patches = resize_rles(plan.rles, (record.height, record.width), plan.scaled_hw, key=record.key)
        placed = self._placed(patches, plan)
        kept = placed.of_at_least(self.min_area_px)
        if not len(kept):
            raise SkipSampleError("no_mask_left", key=record.key)
        return plan.of_masks(placed.areas >= self.min_area_px), kept

    def _sample(
        self, image: np.ndarray, record: TargetRecord, plan: TransformParams, patches: MaskCrops, skipped: tuple[str, ...]
    ) -> TrainingSample:
        picture = np.rot90(resize_decoded(image, *plan.scaled_hw), plan.turns)
        picture = picture[:, ::-1] if plan.flip else picture
        top, left = plan.window
        window = np.ascontiguousarray(picture[top : top + self.image_size, left : left + self.image_size])
        return TrainingSample(
            key=record.key,
            picture=window,
            image_size=self.image_size,
            patches=patches,
            skipped=skipped,
            names=plan.names,
            text_embeddings=plan.text_embeddings,
        )

    def _placed(self, patches: MaskCrops, plan: TransformParams) -> MaskCrops:
        """From the frame of the resized picture to the window that is kept."""
        if not plan.turns and not plan.flip and max(plan.scaled_hw) <= self.image_size:
            return patches
        turned = (patch.rot90(plan.turns, plan.scaled_hw) for patch in patches)
        flipped = (patch.mirrored(plan.turned_hw[1]) if plan.flip else patch for patch in turned)
        return MaskCrops.from_crops(patch.cut(*plan.window, self.image_size, self.image_size) for patch in flipped)
