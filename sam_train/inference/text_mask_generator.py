"""Masks by a list of words: what else may stand in the place of a grid or of a proposer's boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sam_train.errors import ConfigError
from sam_train.geometry import Resize
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.grids import Crop, generate_crops
from sam_train.inference.predictor import Predictor, make_prompts
from sam_train.masks import encode_rle, remove_small_regions_rle, rle_area, rle_to_box_xywh, stability_score
from sam_train.model import Sam
from sam_train.text import TextEncoder, check_text_encoder


class TextMaskGenerator:
    """At most one mask for each word, which it has as its name.

    The model answers words for what is not there, too: the thresholds are what says so. Two words may have the same mask.

    words: names or captions. encoder: the text encoder that the model was trained with.
    pred_iou_thresh, stability_score_thresh, min_region_area_px: as in AutomaticMaskGenerator.
    Raises ConfigError for no words at all and, when it is used, for a model that takes none, or another encoder's.
    """

    def __init__(
        self,
        *,
        words: Sequence[str],
        encoder: TextEncoder,
        pred_iou_thresh: float = 0.7,
        stability_score_thresh: float = 0.8,
        min_region_area_px: int = 0,
    ) -> None:
        if isinstance(words, str) or not words or any(not str(word).strip() for word in words):
            raise ConfigError(f"words are {words!r}: give some, for example words=[cat,'red car']")
        self.words, self.encoder = tuple(map(str, words)), encoder
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.min_region_area_px = min_region_area_px

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Masks of an H x W x 3 uint8 RGB image, best predicted IoU first, and words without one by reason."""
        self.check_model(model)
        predictor = Predictor(model)
        predictor.set_image(image)
        return self.generate_from_embedding(model, predictor.image_embeddings, (image.shape[0], image.shape[1]))

    def check_model(self, model: Sam) -> None:
        """Raise ConfigError for a model that takes no words, or another encoder's."""
        check_text_encoder(model, self.encoder)

    @torch.inference_mode()
    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """As `generate`, for an image that is encoded already."""
        dropped, whole, resize = Counter[str](), generate_crops(*image_hw, 0, 0.0)[0], Resize(*image_hw, model.image_size)
        prompts = make_prompts(text_embeddings=self._embeddings, device=image_embedding.device)
        best = model.decode(image_embedding, prompts, multimask_output=True).best()
        scores, stability = best.iou_scores[:, 0], stability_score(best.mask_logits[:, 0])
        sure, stable = scores >= self.pred_iou_thresh, stability >= self.stability_score_thresh
        dropped["predicted_iou"] += int((~sure).sum())
        dropped["stability"] += int((sure & ~stable).sum())
        found = []
        for i in (sure & stable).nonzero()[:, 0].tolist():  # one by one: masks of a large image are megabytes each
            mask = resize.logits_to_image(best.mask_logits[i : i + 1])[0, 0] > 0
            made = self._made(self.words[i], mask, float(scores[i]), float(stability[i]), whole)
            if made is None:
                dropped["small_region" if bool(mask.any()) else "empty"] += 1
            else:
                found.append(made)
        return sorted(found, key=lambda mask: -mask.predicted_iou), dropped

    @cached_property
    def _embeddings(self) -> Float[Tensor, "N E"]:
        return self.encoder.embed_texts(self.words)

    def _made(self, word: str, mask: Bool[Tensor, "H W"], score: float, stability: float, whole: Crop) -> GeneratedMask | None:
        """None of a mask that has no pixel, or only small regions."""
        if not bool(mask.any()):
            return None
        rle = encode_rle(mask.cpu().numpy())
        cleaned = remove_small_regions_rle(rle, self.min_region_area_px) if self.min_region_area_px else rle
        if cleaned is None:
            return None
        x, y, width, height = (int(side) for side in rle_to_box_xywh(cleaned))
        return GeneratedMask(
            rle=cleaned,
            area=rle_area(cleaned),
            box_xyxy=(x, y, x + width, y + height),
            predicted_iou=score,
            stability_score=stability,
            prompt=(),
            crop=whole,
            name=word,
        )
