"""All masks of an image, no person: grid prompts and the paper's filters (section B).

The order, for each crop: decode the grid, drop by predicted IoU, by stability, by covering nearly the whole image, by touching
an inner crop edge (`candidates`), then NMS ranked by predicted IoU. Over all crops: NMS that prefers the most zoomed-in. What
is left then, and only that, becomes a mask of the image's size, as RLE (`cells`). Last: small holes and islands go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch

from sam_train.geometry import Resampling, Resize
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.grids import generate_crops, point_grid
from sam_train.inference.mask_filters import CropFilter, FilteredCandidate, Filters
from sam_train.inference.predictor import Predictor, click_prompts
from sam_train.inference.prompt_batching import PromptBatcher
from sam_train.masks import find_parent_masks, mask_nms, nms
from sam_train.model import Sam
from sam_train.structures import Prompts

M = TypeVar("M", FilteredCandidate, GeneratedMask)


@dataclass(frozen=True, slots=True)
class Selection:
    """What `select` leaves for `finish`: no device and no model is needed for it."""

    found: Sequence[FilteredCandidate]
    dropped: Counter[str]


class AutomaticMaskGenerator:
    """Masks for everything in an image. The defaults are the paper's; configs/generator/released.yaml has the released code's.

    points_per_side: grid of the whole image; layer i of the crops has points_per_side / crop_points_downscale ** i. 0: no
        grid, only the prompts that `generate` is given.
    points_per_batch: prompts decoded at once, fewer where they do not fit into a GPU's memory.
    pred_iou_thresh, stability_score_thresh, stability_score_offset: 0.88, 0.95, 1.0 (paper). A threshold of 0 keeps all.
    box_nms_thresh, crop_nms_thresh: box IoU above which the lesser of two masks goes, within and across crops, 0.7 (paper).
    crop_layers: 0 is the released default; 2, with crop_points_downscale 2, is what made SA-1B.
    crop_overlap_ratio: overlap of the first layer's crops as a share of the short side, 512 / 1500.
    max_area_fraction: masks covering at least this share of the image go, 0.95 (paper); None keeps them (released code).
    min_region_area_px: holes are filled and islands go below this, 100 (paper); 0 leaves masks as they are.
    keep_largest_island: of a mask that has only small islands keep the largest (released code), not none (paper).
    nms_after_regions: once more drop the lesser of two that overlap, first those that lost regions (released code).
    inclusive_boxes: edges and IoU of boxes are taken with their last pixels as right and bottom (released code).
    resampling: how the image gets to the model's size; "bilinear" is Pillow's (released code).
    nms_by: "boxes", or "masks" to take the IoU of the masks themselves.
    nested_share: masks of which this share lies in a larger one have it as `parent`; None does not look.
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
        crop_nms_thresh: float = 0.7,
        crop_layers: int = 0,
        crop_points_downscale: int = 2,
        crop_overlap_ratio: float = 512 / 1500,
        max_area_fraction: float | None = 0.95,
        min_region_area_px: int = 100,
        keep_largest_island: bool = False,
        nms_after_regions: bool = False,
        inclusive_boxes: bool = False,
        resampling: Resampling = "area",
        nms_by: Literal["boxes", "masks"] = "boxes",
        nested_share: float | None = None,
    ) -> None:
        self.points_per_side, self.batches = points_per_side, PromptBatcher(points_per_batch)
        self.min_iou = pred_iou_thresh if pred_iou_thresh > 0 else None
        self.filters = Filters(
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            max_area_fraction=max_area_fraction,
            inclusive_boxes=inclusive_boxes,
        )
        self.box_nms_thresh, self.crop_nms_thresh = box_nms_thresh, crop_nms_thresh
        self.crop_layers, self.crop_points_downscale = crop_layers, crop_points_downscale
        self.crop_overlap_ratio, self.resampling = crop_overlap_ratio, resampling
        self.min_region_area_px, self.keep_largest_island = min_region_area_px, keep_largest_island
        self.nms_after_regions, self.nms_by, self.nested_share = nms_after_regions, nms_by, nested_share

    def generate(self, model: Sam, image: np.ndarray, prompts: Prompts | None = None) -> tuple[list[GeneratedMask], Counter[str]]:
        """Masks of an H x W x 3 uint8 RGB image, best predicted IoU first, and candidates dropped by reason.

        prompts: points or boxes (image frame, `image_index` 0), a proposer's perhaps, beside the grid of the whole image.
        """
        return self.finish(self.select(model, image, prompts))

    @torch.inference_mode()
    def select(self, model: Sam, image: np.ndarray, prompts: Prompts | None = None) -> Selection:
        """The half of `generate` that needs the model."""
        dropped: Counter[str] = Counter()
        found: list[FilteredCandidate] = []
        for crop in generate_crops(image.shape[0], image.shape[1], self.crop_layers, self.crop_overlap_ratio):
            in_crop = list(self._in_crop(Predictor(model, resampling=self.resampling), image, crop, prompts, dropped))
            ranks = [f.predicted_iou for f in in_crop]
            found += self._distinct(in_crop, ranks, self.box_nms_thresh, dropped, "nms")
        if self.crop_layers:  # the smaller a crop, the more it was enlarged
            ranks = [1 / (f.crop.width * f.crop.height) for f in found]
            found = self._distinct(found, ranks, self.crop_nms_thresh, dropped, "nms_across_crops")
        return Selection(found, dropped)

    @torch.inference_mode()
    def finish(self, selection: Selection) -> tuple[list[GeneratedMask], Counter[str]]:
        """The other half: masks at the size of the image, without small regions. On the CPU, in any thread."""
        dropped = selection.dropped.copy()
        masks = [GeneratedMask.of(found) for found in selection.found]
        if self.min_region_area_px:
            masks = self._without_small_regions(masks, dropped)
        masks.sort(key=lambda m: -m.predicted_iou)
        if self.nested_share is not None:
            found_in = find_parent_masks([m.rle for m in masks], self.nested_share)
            masks = [replace(m, parent=parent) for m, parent in zip(masks, found_in, strict=True)]
        return masks, dropped

    def _in_crop(
        self, predictor: Predictor, image: np.ndarray, crop: Crop, prompts: Prompts | None, dropped: Counter[str]
    ) -> Iterator[FilteredCandidate]:
        """What passes the filters, by the grid of a crop and, in the whole image, by the prompts that were given."""
        predictor.set_image(np.ascontiguousarray(image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]))
        image_hw, resize = (image.shape[0], image.shape[1]), Resize(crop.height, crop.width, predictor.model.image_size)
        for own in self._prompts(crop, prompts, predictor.device):
            # More than a click or a box is not ambiguous: one mask is the answer (paper, section A).
            ambiguous = own.points_xy.shape[1] <= 2
            for decoding in predictor.decode_jobs(own, multimask_output=ambiguous, min_iou=self.min_iou):
                sieve = CropFilter(
                    filters=self.filters, prompts=own, decoding=decoding, crop=crop, image_hw=image_hw, resize=resize
                )
                for found, counts in self.batches.map(sieve, decoding.rows, decoding.chunk_size):
                    dropped.update(counts)
                    yield from found

    def _prompts(self, crop: Crop, prompts: Prompts | None, device: torch.device) -> Iterator[Prompts]:
        if self.points_per_side:
            per_side = max(1, self.points_per_side // self.crop_points_downscale**crop.layer)
            yield click_prompts(torch.from_numpy(point_grid(per_side) * [crop.width, crop.height]).float().to(device))
        if prompts is not None and crop.layer == 0:
            yield prompts

    def _without_small_regions(self, masks: list[GeneratedMask], dropped: Counter[str]) -> list[GeneratedMask]:
        """And, if so asked, without what that made duplicates."""
        least, kept, whole = self.min_region_area_px, [], []
        for mask in masks:
            cleaned = mask.cleaned(least, keep_largest=self.keep_largest_island)
            if cleaned is not None:
                kept.append(cleaned)
                # A lone island that is too small stays as it was, but is none that had nothing small.
                whole.append(float(cleaned is mask and mask.area >= least))
        dropped["small_region"] += len(masks) - len(kept)
        if not self.nms_after_regions:
            return kept
        return self._distinct(kept, whole, max(self.box_nms_thresh, self.crop_nms_thresh), dropped, "nms_after_regions")

    def _distinct(self, masks: list[M], ranks: Sequence[float], threshold: float, dropped: Counter[str], reason: str) -> list[M]:
        """NMS, by boxes or by masks."""
        scores = torch.tensor(ranks, dtype=torch.float32)
        if self.nms_by == "masks":
            kept = mask_nms([m.rle for m in masks], scores, threshold)
        else:
            boxes = torch.tensor([m.box_xyxy for m in masks]).reshape(-1, 4)
            kept = nms(self.filters.corners(boxes).float(), scores, threshold)
        dropped[reason] += len(masks) - len(kept)
        return [masks[i] for i in kept.tolist()]
