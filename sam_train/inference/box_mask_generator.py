"""Masks from a proposer's boxes: what stage two shows before an annotator looks (paper, section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.checkpoint import atomic_torch_save
from sam_train.errors import CheckpointError, ConfigError
from sam_train.geometry import Resize
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.grids import generate_crops
from sam_train.inference.predictor import Predictor
from sam_train.masks import encode_rle, mask_nms, remove_small_regions_rle, rle_area, rle_to_box_xywh, stability_score
from sam_train.model import Sam
from sam_train.model.proposer import Proposer, encoder_hash
from sam_train.structures import PointLabel, Prompts

FORMAT = "sam-train/proposer-1"
CHUNK_SIZE = 16
"""Masks that are brought to the size of the image together."""


class BoxMaskGenerator:
    """Boxes become masks through the decoder, which has the last word on which are shown.

    file: proposer.pt of `sam-train experiment=proposer`. score_thresh, max_boxes, box_nms_thresh: of the boxes, see `Proposer`.
    pred_iou_thresh, stability_score_thresh: of their masks, as in AutomaticMaskGenerator. mask_nms_thresh: IoU above which the
    lesser of two masks goes. min_region_area_px: as there. Raises CheckpointError for a file that is no proposer.
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
        if max_boxes < 1:
            raise ConfigError(f"max_boxes is {max_boxes}: expected at least 1")
        self.file, self.score_thresh, self.max_boxes, self.box_nms_thresh = file, score_thresh, max_boxes, box_nms_thresh
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.mask_nms_thresh, self.min_region_area_px = mask_nms_thresh, min_region_area_px
        self.proposer, self.encoder = load_proposer(Path(file))
        self._fits: Sam | None = None

    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Masks of an H x W x 3 uint8 RGB image, best predicted IoU first, and what was dropped by reason.

        Raises CheckpointError for a model with another image encoder than the proposer learned on.
        """
        self.check_model(model)
        predictor = Predictor(model)
        predictor.set_image(image)
        return self.generate_from_embedding(model, predictor.image_embeddings, (image.shape[0], image.shape[1]))

    def check_model(self, model: Sam) -> None:
        """Raise CheckpointError for a model whose embeddings mean something else to the proposer."""
        if self._fits is model:
            return
        if (other := encoder_hash(model)) != self.encoder:
            message = f"{self.file} reads image encoder {self.encoder[:12]}, this model's is {other[:12]}"
            raise CheckpointError(f"{message}: train a proposer on it (sam-train experiment=proposer init_checkpoint=...)")
        self.proposer.to(model.pixel_mean.device)
        self._fits = model

    @torch.inference_mode()
    def generate_from_embedding(
        self, model: Sam, image_embedding: Float[Tensor, "1 E h w"], image_hw: tuple[int, int]
    ) -> tuple[list[GeneratedMask], Counter[str]]:
        """As `generate`, for an image that is encoded already."""
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
        answer = model.decode(image_embedding, prompts, multimask_output=False)
        stability = stability_score(answer.mask_logits[:, 0])
        sure = answer.iou_scores[:, 0] >= self.pred_iou_thresh
        dropped["pred_iou"] += int((~sure).sum())
        dropped["stability"] += int((sure & (stability < self.stability_score_thresh)).sum())
        sure &= stability >= self.stability_score_thresh
        in_image = resize.points_to_image(corners[sure].reshape(-1, 2, 2)).reshape(-1, 4)
        scores = (answer.iou_scores[sure, 0], stability[sure])
        masks = self._cleaned(resize, answer.mask_logits[sure], image_hw, in_image, scores, dropped)
        kept = mask_nms([mask.rle for mask in masks], torch.tensor([m.predicted_iou for m in masks]), self.mask_nms_thresh)
        dropped["nms"] += len(masks) - len(kept)
        return [masks[i] for i in kept.tolist()], dropped

    def _cleaned(
        self,
        resize: Resize,
        mask_logits: Float[Tensor, "N 1 h w"],
        image_hw: tuple[int, int],
        boxes_xyxy: Float[Tensor, "N 4"],
        scores: tuple[Tensor, Tensor],
        dropped: Counter[str],
    ) -> list[GeneratedMask]:
        """At the size of the image, a few at a time, without small regions."""
        found: list[GeneratedMask] = []
        whole = generate_crops(*image_hw, 0, 0.0)[0]
        for start in range(0, len(mask_logits), CHUNK_SIZE):
            pixels = resize.logits_to_image(mask_logits[start : start + CHUNK_SIZE])[:, 0] > 0
            for number, mask in enumerate(pixels.cpu().numpy(), start):
                rle = encode_rle(mask)
                cleaned = (
                    remove_small_regions_rle(rle, self.min_region_area_px) if self.min_region_area_px and mask.any() else rle
                )
                if cleaned is None or not mask.any():
                    dropped["small_region" if mask.any() else "empty"] += 1
                    continue
                x, y, width, height = (int(side) for side in rle_to_box_xywh(cleaned))
                left, top, right, bottom = boxes_xyxy[number].tolist()
                prompt = ((left, top, int(PointLabel.BOX_TOP_LEFT)), (right, bottom, int(PointLabel.BOX_BOTTOM_RIGHT)))
                found.append(
                    GeneratedMask(
                        rle=cleaned,
                        area=rle_area(cleaned),
                        box_xyxy=(x, y, x + width, y + height),
                        predicted_iou=float(scores[0][number]),
                        stability_score=float(scores[1][number]),
                        prompt=prompt,
                        crop=whole,
                    )
                )
        return found


def save_proposer(path: Path, proposer: Proposer, model: Sam, provenance: Mapping[str, Any]) -> None:
    """Write proposer.pt, whole or not at all. model: whose embeddings it reads."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in proposer.state_dict().items()}
    document = {"format": FORMAT, "proposer": state, "config": proposer.config, "encoder": encoder_hash(model)}
    atomic_torch_save(path, {**document, "provenance": dict(provenance)})


def load_proposer(path: Path) -> tuple[Proposer, str]:
    """The proposer of a file, in eval mode, and the hash of the image encoder that it reads. Raises CheckpointError."""
    wanted = "give the proposer.pt that sam-train experiment=proposer wrote"
    if not path.is_file():
        raise CheckpointError(f"no proposer at {path}: {wanted}")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file is wrong
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is no proposer ({reason}): {wanted}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no proposer but something else: {wanted}")
    try:
        proposer = Proposer(**document["config"])
        proposer.load_state_dict(document["proposer"])
        encoder = str(document["encoder"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its parts do not fit together ({error}): {wanted}") from error
    return proposer.eval(), encoder
