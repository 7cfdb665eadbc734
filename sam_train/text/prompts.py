"""What stands for the words of a mask in training: a few embeddings each, of which a step draws one."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sam_train.errors import ConfigError
from sam_train.masks import decode_rle
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards import Sample, decode_jpeg
from sam_train.text.clip import ClipEncoder
from sam_train.text.crops import ObjectCrop, crop_object
from sam_train.text.encoder import TextEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Of those masks of an image that have words: their ids, and K embeddings of length one each."""

    mask_ids: Int[np.ndarray, " M"]
    embeddings: Float[np.ndarray, "M K E"]


class MaskPrompts(ABC):
    """Which masks of a set are prompted by words, and by which embeddings."""

    encoder: TextEncoder

    @abstractmethod
    def of(self, sample: Sample) -> Texts:
        """Embeddings for the masks of one image; equal for equal samples, whatever came before."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the embeddings depend on beside the encoder and the sample."""

    @cached_property
    def sha256(self) -> str:
        """Of the encoder's weights and the settings."""
        document = {"kind": type(self).__name__, "encoder": self.encoder.sha256, **self.settings()}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class NamePrompts(MaskPrompts):
    """A mask's own words: the name that its record has (a category, a caption).

    wordings: K ways to say it, each with one "{name}". Masks without a name have no words.
    """

    def __init__(self, encoder: TextEncoder, wordings: Sequence[str] = ("{name}",)) -> None:
        if not wordings or any(wording.count("{name}") != 1 for wording in wordings):
            raise ConfigError(f"each of text.wordings must have one {{name}}, got {list(wordings)}")
        self.encoder, self.wordings = encoder, tuple(wordings)
        self._known: dict[str, Float[np.ndarray, "K E"]] = {}

    def of(self, sample: Sample) -> Texts:
        named = [mask for mask in sample.record.masks if mask.name]
        new = sorted({mask.name for mask in named} - self._known.keys())
        texts = [wording.replace("{name}", name) for name in new for wording in self.wordings]
        embeddings = self.encoder.embed_texts(texts).unflatten(0, (len(new), len(self.wordings))) if new else ()
        self._known |= {name: rows.numpy() for name, rows in zip(new, embeddings, strict=True)}
        return _texts(named, [self._known[mask.name] for mask in named], len(self.wordings), self.encoder.dim)

    def settings(self) -> dict[str, Any]:
        return {"wordings": self.wordings}


class CropPrompts(MaskPrompts):
    """The paper's: the CLIP embedding of the object cut out, which needs no words (section D.5).

    num_crops: K crops of a mask, each expanded by a random factor; every second one has its background blanked.
    expansion: range of that factor on the longer side of the mask's box (paper: 1 to 2).
    min_area_px: smaller masks have none (paper: more than 100 x 100, image frame).
    stages: only masks of these, as their provenance says (paper: the first two); None takes all.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        num_crops: int = 4,
        expansion: Sequence[float] = (1.0, 2.0),
        min_area_px: int = 10_001,
        stages: Sequence[str] | None = None,
    ) -> None:
        if num_crops < 1 or not 1 <= expansion[0] <= expansion[1]:
            raise ConfigError(f"num_crops {num_crops} must be at least 1, expansion {tuple(expansion)} two factors from 1 on")
        self.encoder: ClipEncoder = encoder
        self.num_crops, self.expansion = num_crops, (float(expansion[0]), float(expansion[1]))
        self.min_area_px, self.stages = min_area_px, None if stages is None else tuple(stages)

    def of(self, sample: Sample) -> Texts:
        wanted = [mask for mask in sample.record.masks if self._is_wanted(mask)]
        rows: list[np.ndarray] = []
        if wanted:
            image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
            for mask in wanted:  # one by one: the crops of a thousand masks would be gigabytes
                rows.append(self.encoder.embed_crops(self._crops(image, sample.record, mask)).numpy())
        return _texts(wanted, rows, self.num_crops, self.encoder.dim)

    def settings(self) -> dict[str, Any]:
        names = ("num_crops", "expansion", "min_area_px", "stages")
        return {name: getattr(self, name) for name in names}

    def _is_wanted(self, mask: MaskRecord) -> bool:
        stage = mask.provenance.stage if mask.provenance else ""
        return mask.area >= max(1, self.min_area_px) and (self.stages is None or stage in self.stages)

    def _crops(self, image: np.ndarray, record: ImageRecord, mask: MaskRecord) -> list[ObjectCrop]:
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, key=record.key)
        seed = hashlib.sha256(f"{record.image_id} {mask.id}".encode()).digest()
        factors = np.random.default_rng(list(seed)).uniform(*self.expansion, self.num_crops)
        return [
            crop_object(image, pixels, expansion=factor, blank=number % 2 == 1, size=self.encoder.image_size)
            for number, factor in enumerate(factors)
        ]


def _texts(masks: Sequence[MaskRecord], rows: Sequence[np.ndarray], num: int, dim: int) -> Texts:
    embeddings = np.stack(rows) if rows else np.zeros((0, num, dim), np.float32)
    return Texts(mask_ids=np.array([mask.id for mask in masks], np.int64), embeddings=embeddings)
