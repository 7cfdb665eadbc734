"""Embeddings that serve as the text prompt of a mask in training: K for each mask, of which a training step draws one."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from sam_train.errors import ConfigError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.rle import decode_rle
from sam_train.shards import Sample, decode_jpeg
from sam_train.text.clip import ClipEncoder
from sam_train.text.crops import ObjectCrop, crop_object
from sam_train.text.encoder import TextEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEmbeddings:
    """Text prompt embeddings of the M masks of an image that have a text prompt, K of unit norm for each mask."""

    mask_ids: Int[np.ndarray, " M"]
    embeddings: Float[np.ndarray, "M K E"]


class TextPromptEmbedder(ABC):
    """Computes the text prompt embeddings of the masks of a sample, and selects the masks that have any."""

    encoder: TextEncoder
    kind: ClassVar[str]
    """Name that enters `sha256`. It never changes, because the files of `TextEmbeddingStore` carry that hash."""

    @abstractmethod
    def embed(self, sample: Sample) -> TextEmbeddings:
        """Return the embeddings of the masks of one image. Equal samples give equal embeddings, in any order of calls."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings, as JSON values, on which the embeddings depend beside the encoder and the sample."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the encoder's weights, the kind and the settings."""
        document = {"kind": self.kind, "encoder": self.encoder.sha256, **self.settings()}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class NameEmbedder(TextPromptEmbedder):
    """Embeds the name of a mask in its record, which is a category or a caption. Masks without a name get no embedding.

    templates: K prompt templates, each of which contains "{name}" once.
    """

    kind = "NamePrompts"

    def __init__(self, encoder: TextEncoder, templates: Sequence[str] = ("{name}",)) -> None:
        """Raises ConfigError if there is no template, or one that does not contain "{name}" exactly once."""
        if not templates or any(template.count("{name}") != 1 for template in templates):
            raise ConfigError(
                f"text.templates is {list(templates)}: give at least one template, and each must contain {{name}} once"
            )
        self.encoder, self.templates = encoder, tuple(templates)
        self._cache: dict[str, Float[np.ndarray, "K E"]] = {}

    def embed(self, sample: Sample) -> TextEmbeddings:
        """Return K embeddings for each mask with a name. Each distinct name is embedded once."""
        named = [mask for mask in sample.record.masks if mask.name]
        new = sorted({mask.name for mask in named} - self._cache.keys())
        texts = [template.replace("{name}", name) for name in new for template in self.templates]
        embeddings = self.encoder.embed_texts(texts).unflatten(0, (len(new), len(self.templates))) if new else ()
        self._cache |= {name: rows.numpy() for name, rows in zip(new, embeddings, strict=True)}
        return _text_embeddings(named, [self._cache[mask.name] for mask in named], len(self.templates), self.encoder.dim)

    def settings(self) -> dict[str, Any]:
        """Return the templates. The key is part of stored hashes and keeps its name."""
        return {"wordings": self.templates}


class CropEmbedder(TextPromptEmbedder):
    """Embeds crops of a mask's object with CLIP's image tower, so that the shards need no names (paper, section D.5).

    num_crops: K crops of each mask, each expanded by a random factor; every second one has a black background.
    expansion: range of that factor on the longer side of the mask's box (paper: 1 to 2).
    min_area_px: smallest area of a mask that is embedded, in the image frame (paper: more than 100 x 100).
    stages: provenance stages whose masks are embedded (paper: the first two); None takes all masks.
    """

    kind = "CropPrompts"

    def __init__(
        self,
        encoder: ClipEncoder,
        num_crops: int = 4,
        expansion: Sequence[float] = (1.0, 2.0),
        min_area_px: int = 10_001,
        stages: Sequence[str] | None = None,
    ) -> None:
        """Raises ConfigError if `num_crops` is below 1 or `expansion` is no ascending range of factors from 1 on."""
        if num_crops < 1 or not 1 <= expansion[0] <= expansion[1]:
            raise ConfigError(
                f"text.num_crops is {num_crops} and text.expansion {list(expansion)}: expected num_crops of at least 1, "
                "and two factors of at least 1, the smaller one first"
            )
        self.encoder: ClipEncoder = encoder
        self.num_crops, self.expansion = num_crops, (float(expansion[0]), float(expansion[1]))
        self.min_area_px, self.stages = min_area_px, None if stages is None else tuple(stages)

    def embed(self, sample: Sample) -> TextEmbeddings:
        """Return K embeddings for each mask that is large enough and of one of the stages."""
        masks = [mask for mask in sample.record.masks if self._is_embedded(mask)]
        rows: list[np.ndarray] = []
        if masks:
            image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
            for mask in masks:  # one by one: the crops of a thousand masks take gigabytes
                rows.append(self.encoder.embed_crops(self._crops(image, sample.record, mask)).numpy())
        return _text_embeddings(masks, rows, self.num_crops, self.encoder.dim)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments beside the encoder."""
        names = ("num_crops", "expansion", "min_area_px", "stages")
        return {name: getattr(self, name) for name in names}

    def _is_embedded(self, mask: MaskRecord) -> bool:
        stage = mask.provenance.stage if mask.provenance else ""
        return mask.area >= max(1, self.min_area_px) and (self.stages is None or stage in self.stages)

    def _crops(self, image: np.ndarray, record: ImageRecord, mask: MaskRecord) -> list[ObjectCrop]:
        """Return the K crops of a mask. Their factors are drawn from a seed of image id and mask id."""
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, key=record.key)
        seed = hashlib.sha256(f"{record.image_id} {mask.id}".encode()).digest()
        factors = np.random.default_rng(list(seed)).uniform(*self.expansion, self.num_crops)
        return [
            crop_object(image, pixels, expansion=factor, black_background=number % 2 == 1, size=self.encoder.image_size)
            for number, factor in enumerate(factors)
        ]


def _text_embeddings(masks: Sequence[MaskRecord], rows: Sequence[np.ndarray], num: int, dim: int) -> TextEmbeddings:
    """Return the K x E arrays of the masks as one M x K x E array, also if there is no mask."""
    embeddings = np.stack(rows) if rows else np.zeros((0, num, dim), np.float32)
    return TextEmbeddings(mask_ids=np.array([mask.id for mask in masks], np.int64), embeddings=embeddings)
