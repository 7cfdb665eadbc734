"""All masks of an image, no person: grid prompts and the paper's filters (section B).

The order, for each crop: decode the grid, drop by predicted IoU, by stability, by touching an inner crop edge, by
covering nearly the whole image, then NMS ranked by predicted IoU. Over all crops: NMS that prefers the most zoomed-in.
Last: small islands and holes go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sam_train.inference.grids import Crop, crops, point_grid
from sam_train.inference.predictor import Predictor, clicks
from sam_train.masks import mask_to_box_xywh, masks_to_boxes_xyxy, nms, remove_small_regions, stability_score
from sam_train.model import Sam

# A box edge nearer than this to a crop's inner edge touches it (segment_anything/utils/amg.py).
CROP_EDGE_TOLERANCE_PX = 20

# Mask pixels that are brought to the size of the image at once: 128 MB of logits.
PIXELS_AT_ONCE = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedMask:
    """A mask in the image frame and how it came about."""

    mask: np.ndarray
    predicted_iou: float
    stability_score: float
    point_xy: tuple[float, float]
    crop: Crop
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Found:
    """A candidate between the filters and the NMS of its crop: logits stay small until it is known to be kept."""

    logits: Tensor
    predicted_iou: float
    stability_score: float
    point_xy: tuple[float, float]
    box_xyxy: tuple[float, float, float, float]


class AutomaticMaskGenerator:
    """Masks for everything in an image.

    points_per_side: grid of the whole image; layer i of the crops has points_per_side / crop_points_downscale ** i.
    points_per_batch: prompts decoded at once.
    pred_iou_thresh, stability_score_thresh, stability_score_offset: 0.88, 0.95, 1.0 (paper).
    box_nms_thresh: box IoU above which the lesser of two masks goes, within and across crops, 0.7 (paper).
    crop_layers: 0 is the released default; 2, with crop_points_downscale 2, is what made SA-1B.
    crop_overlap_ratio: overlap of the first layer's crops as a share of the short side, 512 / 1500.
    max_area_fraction: masks covering at least this share of the image go, 0.95 (paper).
    min_region_area_px: islands go and holes are filled below this, 100 (paper).
    """

    def __init__(
        self,
        *,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_layers: int = 0,
        crop_points_downscale: int = 2,
        crop_overlap_ratio: float = 512 / 1500,
        max_area_fraction: float = 0.95,
        min_region_area_px: int = 100,
    ) -> None:
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
        self.pred_iou_thresh, self.stability_score_thresh = pred_iou_thresh, stability_score_thresh
        self.stability_score_offset, self.box_nms_thresh = stability_score_offset, box_nms_thresh
        self.crop_layers, self.crop_points_downscale = crop_layers, crop_points_downscale
        self.crop_overlap_ratio = crop_overlap_ratio
        self.max_area_fraction, self.min_region_area_px = max_area_fraction, min_region_area_px

    @torch.inference_mode()
    def generate(self, model: Sam, image: np.ndarray) -> tuple[list[GeneratedMask], Counter[str]]:
        """Masks of an H x W x 3 uint8 RGB image, best predicted IoU first, and candidates dropped by reason."""
        dropped: Counter[str] = Counter()
        found: list[GeneratedMask] = []
        height, width = image.shape[:2]
        for crop in crops(height, width, self.crop_layers, self.crop_overlap_ratio):
            found += self._crop_masks(Predictor(model), image, crop, dropped)
        if self.crop_layers:
            found = self._across_crops(found, dropped)
        cleaned = [self._clean(mask, dropped) for mask in found]
        return sorted((m for m in cleaned if m is not None), key=lambda m: -m.predicted_iou), dropped

    def _crop_masks(self, predictor: Predictor, image: np.ndarray, crop: Crop, dropped: Counter[str]) -> list[GeneratedMask]:
        window = image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
        predictor.set_image(np.ascontiguousarray(window))
        per_side = max(1, self.points_per_side // self.crop_points_downscale**crop.layer)
        points = torch.from_numpy(point_grid(per_side) * [crop.width, crop.height]).float().to(predictor.device)
        found: list[_Found] = []
        for batch in points.split(self.points_per_batch):
            prediction = predictor.predict(clicks(batch), multimask_output=True, min_iou=self.pred_iou_thresh)
            scores = prediction.iou_scores.flatten()
            good = _passed(scores > self.pred_iou_thresh, dropped, "predicted_iou")
            origins = batch.repeat_interleave(prediction.iou_scores.shape[1], 0)[good]
            logits = prediction.mask_logits.flatten(0, 1)[good]
            # Only a few masks at a time are at the size of the image, whatever that is.
            for chunk in torch.arange(len(good)).split(max(1, PIXELS_AT_ONCE // (crop.width * crop.height))):
                kept = self._filtered(
                    predictor, logits[chunk], scores[good][chunk], origins[chunk], crop, image.shape[:2], dropped
                )
                found += kept
        best = nms(_boxes(found), torch.tensor([f.predicted_iou for f in found]), self.box_nms_thresh).tolist()
        dropped["nms"] += len(found) - len(best)
        return [self._finished(predictor, found[i], crop, image.shape[:2]) for i in best]

    def _filtered(
        self,
        predictor: Predictor,
        low_logits: Tensor,
        scores: Tensor,
        origins: Tensor,
        crop: Crop,
        image_hw: tuple[int, int],
        dropped: Counter[str],
    ) -> list[_Found]:
        """Candidates that pass stability, area and edge, measured at the size of the crop."""
        logits = predictor.logits_in_image(low_logits[:, None])[:, 0]
        stability = stability_score(logits, self.stability_score_offset)
        masks = logits > 0
        boxes = masks_to_boxes_xyxy(masks) + torch.tensor([crop.x, crop.y] * 2, device=masks.device)
        covered = masks.sum((1, 2)) / (image_hw[0] * image_hw[1])
        index = torch.arange(len(masks), device=masks.device)
        for reason, good in (
            ("stability", stability >= self.stability_score_thresh),
            ("empty", covered > 0),
            ("covers_image", covered < self.max_area_fraction),
            ("crop_edge", ~touches_inner_edge(boxes, crop, image_hw)),
        ):
            index = index[_passed(good[index], dropped, reason)]
        return [
            _Found(low_logits[i].clone(), float(scores[i]), float(stability[i]), _xy(origins[i]), _box(boxes[i]))
            for i in index.tolist()
        ]

    def _finished(self, predictor: Predictor, found: _Found, crop: Crop, image_hw: tuple[int, int]) -> GeneratedMask:
        mask = predictor.masks_in_image(found.logits[None, None])[0, 0].cpu().numpy()
        whole = np.zeros(image_hw, bool)
        whole[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] = mask
        return GeneratedMask(
            mask=whole,
            predicted_iou=found.predicted_iou,
            stability_score=found.stability_score,
            point_xy=(found.point_xy[0] + crop.x, found.point_xy[1] + crop.y),
            crop=crop,
            box_xyxy=found.box_xyxy,
        )

    def _across_crops(self, found: list[GeneratedMask], dropped: Counter[str]) -> list[GeneratedMask]:
        """The most zoomed-in of masks that are the same wins."""
        kept = nms(_boxes(found), torch.tensor([float(m.crop.layer) for m in found]), self.box_nms_thresh).tolist()
        dropped["nms_across_crops"] += len(found) - len(kept)
        return [found[i] for i in kept]

    def _clean(self, generated: GeneratedMask, dropped: Counter[str]) -> GeneratedMask | None:
        if self.min_region_area_px == 0:
            return generated
        mask = remove_small_regions(generated.mask, self.min_region_area_px)
        if mask is None:
            dropped["small_region"] += 1
            return None
        x, y, width, height = mask_to_box_xywh(mask)
        return replace(generated, mask=mask, box_xyxy=(x, y, x + width, y + height))


def touches_inner_edge(boxes_xyxy: Tensor, crop: Crop, image_hw: tuple[int, int]) -> Tensor:
    """Whether a box (N x 4, image frame) reaches an edge of its crop that is not an edge of the image."""
    edges = torch.tensor([crop.x, crop.y, crop.x + crop.width, crop.y + crop.height], device=boxes_xyxy.device)
    image_edges = torch.tensor([0, 0, image_hw[1], image_hw[0]], device=boxes_xyxy.device)
    near_crop = (boxes_xyxy - edges).abs() <= CROP_EDGE_TOLERANCE_PX
    near_image = (boxes_xyxy - image_edges).abs() <= CROP_EDGE_TOLERANCE_PX
    return (near_crop & ~near_image).any(1)


def _passed(good: Tensor, dropped: Counter[str], reason: str) -> Tensor:
    """Indices of what is good; what is not is counted."""
    dropped[reason] += int((~good).sum())
    return good.nonzero()[:, 0]


def _boxes(found: Sequence[_Found] | Sequence[GeneratedMask]) -> Tensor:
    return torch.tensor([f.box_xyxy for f in found]).reshape(-1, 4)


def _xy(point: Tensor) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _box(box: Tensor) -> tuple[float, float, float, float]:
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])
