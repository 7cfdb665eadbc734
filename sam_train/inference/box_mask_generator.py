"""Masks from the boxes of a proposer: the prefilled masks of the semi-automatic stage (paper, section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.checkpoint import atomic_torch_save
from sam_train.errors import CheckpointError
from sam_train.geometry import Resize
from sam_train.inference.argument_checks import check_integer, check_number
from sam_train.inference.generator_types import GeneratedMask, Point
from sam_train.inference.mask_filters import check_mask_filters, filter_masks
from sam_train.inference.predictor import Predictor
from sam_train.masks import mask_nms
from sam_train.model import Sam
from sam_train.model.proposer import Proposer, encoder_hash
from sam_train.structures import PointLabel, Prompts

FORMAT = "sam-train/proposer-1"


class BoxMaskGenerator:
    """Segments the boxes of a class-agnostic proposer and filters the masks by the decoder's scores.

    file: proposer.pt, as `sam-train experiment=proposer` writes it.
    score_thresh, max_boxes, box_nms_thresh: filters of the boxes (`Proposer.propose`).
    pred_iou_thresh, stability_score_thresh: filters of the masks, as in GridMaskGenerator.
    mask_nms_thresh: mask IoU above which the lower-scored of two masks is dropped.
    min_region_area_px: as in GridMaskGenerator.

    Raises ValueError, with the argument's name, for a value out of range, and CheckpointError if `file` is not a proposer.
    """

    def __init__(
        self,
        *,
        file: str,
        score_thresh: float = 0.25,
        max_boxes: int = 300,
        box_nms_thresh: float = 0.6,
        pred_iou_thresh: float = 0.7,
        stability_score_thresh: float = 0.8,
        mask_nms_thresh: float = 0.7,
        min_region_area_px: int = 0,
    ) -> None:
        check_integer("max_boxes", max_boxes, minimum=1)
        check_number("score_thresh", score_thresh, minimum=0, maximum=1)
        check_number("box_nms_thresh", box_nms_thresh, minimum=0, maximum=1)
        check_number("mask_nms_thresh", mask_nms_thresh, minimum=0, maximum=1)
        check_mask_filters(pred_iou_thresh, stability_score_thresh, min_region_area_px)
        self.file, self.score_thresh, self.max_boxes, self.box_nms_thresh = file, score_thresh, max_boxes, box_nms_thresh
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.mask_nms_thresh, self.min_region_area_px = mask_nms_thresh, min_region_area_px
        self.proposer, self.encoder_hash = load_proposer(Path(file))
        self._checked_model: Sam | None = None

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return the masks of an H x W x 3 uint8 RGB image, highest predicted IoU first, and counts of dropped masks by reason.

        Raises CheckpointError if the model's image encoder is not the one that the proposer was trained on.
        """
        self.check_model(model)
        predictor = Predictor(model)
        predictor.set_image(image)
        return self.generate_from_embedding(model, predictor.get_image_embedding(), (image.shape[0], image.shape[1]))

    def check_model(self, model: Sam) -> None:
        """Raise CheckpointError if the model's image encoder is not the one that the proposer was trained on."""
        if self._checked_model is model:
            return
        if (model_hash := encoder_hash(model)) != self.encoder_hash:
            message = f"{self.file} was trained on image encoder {self.encoder_hash[:12]}, this model's is {model_hash[:12]}"
            raise CheckpointError(f"{message}: train a proposer on it (sam-train experiment=proposer init_checkpoint=...)")
        self.proposer.to(model.pixel_mean.device)
        self._checked_model = model

    @torch.inference_mode()
    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return what `generate` returns, from the embedding of an image of height and width `image_hw`."""
        self.check_model(model)
        dropped: Counter[str] = Counter()
        resize = Resize(*image_hw, model.image_size)
        boxes, _ = self.proposer.propose(
            image_embedding,
            resize.scaled_hw,
            model.image_size,
            score_thresh=self.score_thresh,
            max_boxes=self.max_boxes,
            nms_thresh=self.box_nms_thresh,
        )
        if not len(boxes):
            return [], dropped
        corners = torch.cat([boxes[:, :2], (boxes[:, 2:] - 1).clamp(min=0)], 1)  # first and last pixel inside
        prompts = Prompts.from_boxes(torch.zeros(len(boxes), dtype=torch.long, device=boxes.device), corners)
        prediction = model.decode(image_embedding, prompts, multimask_output=False)
        image_corners = resize.points_to_image(corners.reshape(-1, 2, 2)).tolist()
        passing = filter_masks(
            prediction,
            resize,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            min_region_area_px=self.min_region_area_px,
            dropped=dropped,
        )
        masks = [replace(mask, prompt_points=_corner_points(*image_corners[i])) for i, mask in passing]
        kept = mask_nms([mask.rle for mask in masks], torch.tensor([m.predicted_iou for m in masks]), self.mask_nms_thresh)
        dropped["nms"] += len(masks) - len(kept)
        return [masks[i] for i in kept.tolist()], dropped


def save_proposer(path: Path, proposer: Proposer, model: Sam, provenance: Mapping[str, Any]) -> None:
    """Write proposer.pt atomically. `model` is the one whose embeddings the proposer was trained on."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in proposer.state_dict().items()}
    document = {"format": FORMAT, "proposer": state, "config": proposer.config, "encoder": encoder_hash(model)}
    atomic_torch_save(path, {**document, "provenance": dict(provenance)})


def load_proposer(path: Path) -> tuple[Proposer, str]:
    """Return the proposer of a file in eval mode, and the hash of the image encoder that it was trained on.

    Raises CheckpointError if the file does not exist or does not hold a proposer.
    """
    expected = "expected the proposer.pt that sam-train experiment=proposer writes"
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}; {expected}")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of invalid file
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read as a proposer ({reason}): {expected}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a proposer: {expected}")
    try:
        proposer = Proposer(**document["config"])
        proposer.load_state_dict(document["proposer"])
        encoder = str(document["encoder"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: weights and configuration of the proposer do not match ({error}); {expected}") from error
    return proposer.eval(), encoder


def _corner_points(top_left: Sequence[float], bottom_right: Sequence[float]) -> tuple[Point, Point]:
    """Return the two points of a box prompt."""
    (left, top), (right, bottom) = top_left, bottom_right
    return (left, top, int(PointLabel.BOX_TOP_LEFT)), (right, bottom, int(PointLabel.BOX_BOTTOM_RIGHT))
