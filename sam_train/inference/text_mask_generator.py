"""Masks from a list of text prompts, in place of a point grid or of a proposer's boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.errors import ConfigError
from sam_train.geometry import Resize
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.mask_filters import check_mask_filters, filter_masks
from sam_train.inference.predictor import Predictor
from sam_train.inference.prompt_arrays import make_prompts
from sam_train.model import Sam
from sam_train.text import TextEncoder, check_text_encoder


class TextMaskGenerator:
    """Returns at most one mask for each text prompt, with the prompt as its `name`.

    The model predicts a mask for a text prompt whose object is not in the image, too; only the thresholds reject it. Two prompts
    may get the same mask.

    text_prompts: class names or captions. encoder: the text encoder with which the model was trained.
    pred_iou_thresh, stability_score_thresh, min_region_area_px: as in GridMaskGenerator.

    Raises ConfigError if the list is empty or has an empty text, and ValueError for a threshold out of range.
    """

    def __init__(
        self,
        *,
        text_prompts: Sequence[str],
        encoder: TextEncoder,
        pred_iou_thresh: float = 0.7,
        stability_score_thresh: float = 0.8,
        min_region_area_px: int = 0,
    ) -> None:
        if isinstance(text_prompts, str) or not text_prompts or any(not str(text).strip() for text in text_prompts):
            raise ConfigError(
                f"text_prompts is {text_prompts!r}: expected a list of texts, for example text_prompts=[cat,'red car']"
            )
        check_mask_filters(pred_iou_thresh, stability_score_thresh, min_region_area_px)
        self.text_prompts, self.encoder = tuple(map(str, text_prompts)), encoder
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.min_region_area_px = min_region_area_px

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return the masks of an H x W x 3 uint8 RGB image, highest predicted IoU first, and counts of dropped masks by reason.

        Raises ConfigError if the model takes no text prompts or was trained with another text encoder.
        """
        self.check_model(model)
        predictor = Predictor(model)
        predictor.set_image(image)
        return self.generate_from_embedding(model, predictor.get_image_embedding(), (image.shape[0], image.shape[1]))

    def check_model(self, model: Sam) -> None:
        """Raise ConfigError if the model takes no text prompts or was trained with another text encoder."""
        check_text_encoder(model, self.encoder)

    @torch.inference_mode()
    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return what `generate` returns, from the embedding of an image of height and width `image_hw`."""
        dropped, resize = Counter[str](), Resize(*image_hw, model.image_size)
        prompts = make_prompts(text_embeddings=self._embeddings, device=image_embedding.device)
        best = model.decode(image_embedding, prompts, multimask_output=True).best()
        passing = filter_masks(
            best,
            resize,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            min_region_area_px=self.min_region_area_px,
            dropped=dropped,
        )
        masks = [replace(mask, name=self.text_prompts[i]) for i, mask in passing]
        return sorted(masks, key=lambda mask: -mask.predicted_iou), dropped

    @cached_property
    def _embeddings(self) -> Float[Tensor, "N E"]:
        return self.encoder.embed_texts(self.text_prompts)
