"""Automatic mask generation: segment everything in an image from a grid of points with the paper's filters (section B).

For each crop, the grid is decoded and masks are dropped by predicted IoU, by stability, if they cover nearly the whole image,
and if they touch an inner edge of the crop (`mask_filters`); then NMS ranks them by predicted IoU. Over all crops, NMS prefers
masks of the smallest crops. Only the masks that remain are rasterized at the image's size (`mask_rasterizer`). Finally, small
holes are filled and small islands removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from sam_train.errors import CheckpointError, ConfigError
from sam_train.geometry import Resampling, Resize
from sam_train.inference.argument_checks import check_choice, check_integer, check_number
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.grids import MAX_CROP_LAYERS, Crop, check_point_grids, generate_crops, point_grid
from sam_train.inference.mask_filters import CropFilter, Filters
from sam_train.inference.predictor import Predictor
from sam_train.inference.prompt_arrays import click_prompts
from sam_train.inference.prompt_batching import PromptBatcher
from sam_train.masks import find_parent_masks, mask_nms, nms
from sam_train.model import Sam
from sam_train.structures import Prompts

PAPER_THRESHOLDS = {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95}
"""Thresholds of the paper (section B), which suit a model that was trained as long as the paper's."""


THRESHOLDS_KEY = "generator"
"""Key of a checkpoint's provenance under which its thresholds are stored."""


def checked_thresholds(thresholds: Mapping[str, Any], *, origin: str) -> dict[str, float]:
    """Return the thresholds that a checkpoint carries. Raises CheckpointError for another name or a value above 1."""
    for name, value in thresholds.items():
        if name not in PAPER_THRESHOLDS or not isinstance(value, (int, float)) or not value <= 1:
            expected = f"{' and '.join(PAPER_THRESHOLDS)}, numbers of at most 1"
            raise CheckpointError(f"{origin}: the threshold {name} is {value!r}, expected {expected}")
    return dict(thresholds)


class GridMaskGenerator:
    """Segments everything in an image from a grid of points: the generator of the data engine.

    The defaults are the paper's (section B); configs/generator/released.yaml has those of the released code, whose interface is
    `AutomaticMaskGenerator`. The generator holds no model and no image, so that one generator serves many threads.

    Example:

        generator = GridMaskGenerator(points_per_side=32)
        masks, dropped = generator.generate(predictor.model, image)  # image: H x W x 3 uint8 RGB
        masks[0].mask           # H x W bool
        masks[0].predicted_iou  # the highest of all masks

    points_per_side: side of the point grid over the whole image; layer i of the crops has
        points_per_side / crop_points_downscale ** i. With 0 there is no grid, only the prompts that `generate` receives.
    points_per_batch: prompts decoded at once; halved if they do not fit into GPU memory.
    pred_iou_thresh, stability_score_thresh, stability_score_offset: 0.88, 0.95, 1.0 (paper, as is None); fractions of at most 1.
        A threshold of 0 or less disables its filter.
    box_nms_thresh, crop_nms_thresh: box IoU above which the lower-ranked of two masks is dropped, within and across crops;
        0.7 (paper).
    crop_layers: layers of zoomed-in crops, 0 in the released code. SA-1B was made with 2 and crop_points_downscale 2.
    crop_overlap_ratio: overlap of the crops of the first layer as a fraction of the short side, 512 / 1500 (released).
    max_area_fraction: masks that cover at least this fraction of the image are dropped, 0.95 (paper); None disables the filter
        (released code).
    min_region_area_px: holes and islands smaller than this are filled and removed, 100 (paper); 0 disables cleaning.
    keep_largest_island: of a mask that has only small islands, keep the largest (released code) instead of dropping the mask
        (paper).
    nms_after_regions: after cleaning, run NMS again and prefer masks that had no small regions (released code).
    inclusive_boxes: measure box edges and box IoU with right and bottom at the last pixel inside (released code).
    resampling: interpolation with which the image is resized to the model frame; "bilinear" is Pillow's (released code).
    nms_by: "boxes" compares boxes, "masks" the masks themselves.
    nested_share: a mask gets as `parent` the smallest larger mask that contains at least this fraction of it; None disables
        the search.
    point_grids: points of each layer in place of the regular grid, N x 2, x and y as fractions of the crop's sides; None is the
        regular grid.

    Raises ValueError, with the argument's name, for a value out of range.
    """

    def __init__(
        self,
        *,
        points_per_side: int = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = PAPER_THRESHOLDS["pred_iou_thresh"],
        stability_score_thresh: float | None = PAPER_THRESHOLDS["stability_score_thresh"],
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
        point_grids: Sequence[np.ndarray] | None = None,
    ) -> None:
        check_integer("points_per_side", points_per_side, minimum=0)
        check_integer("points_per_batch", points_per_batch, minimum=1)
        check_integer("crop_layers", crop_layers, minimum=0, maximum=MAX_CROP_LAYERS)
        check_integer("crop_points_downscale", crop_points_downscale, minimum=1)
        check_number("crop_overlap_ratio", crop_overlap_ratio, minimum=0, maximum=1)
        if pred_iou_thresh is None:
            pred_iou_thresh = PAPER_THRESHOLDS["pred_iou_thresh"]
        if stability_score_thresh is None:
            stability_score_thresh = PAPER_THRESHOLDS["stability_score_thresh"]
        check_number("pred_iou_thresh", pred_iou_thresh, maximum=1)
        check_number("stability_score_thresh", stability_score_thresh, maximum=1)
        check_number("stability_score_offset", stability_score_offset, minimum=0)
        check_number("box_nms_thresh", box_nms_thresh, minimum=0, maximum=1)
        check_number("crop_nms_thresh", crop_nms_thresh, minimum=0, maximum=1)
        check_integer("min_region_area_px", min_region_area_px, minimum=0)
        check_choice("resampling", resampling, ("area", "bilinear"))
        check_choice("nms_by", nms_by, ("boxes", "masks"))
        for name, fraction in (("max_area_fraction", max_area_fraction), ("nested_share", nested_share)):
            if fraction is not None:
                check_number(name, fraction, minimum=0, maximum=1)
        self.point_grids = None if point_grids is None else check_point_grids(point_grids, crop_layers + 1)
        self.points_per_side, self.batcher = points_per_side, PromptBatcher(points_per_batch)
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
        """Return all masks of an image, highest predicted IoU first, and the number of dropped candidates by reason.

        model: in eval mode, on the device that computes. image: H x W x 3 uint8 RGB. prompts: points or boxes in the image
        frame with `image_index` 0, such as a proposer's, decoded in addition to the grid of the whole image.

        Masks are in the image frame. The reasons are predicted_iou, stability, empty, covers_image, crop_edge, nms,
        nms_across_crops, small_region and nms_after_regions. Raises ValueError if the image has another shape or dtype,
        ConfigError without prompts and with points_per_side=0.
        """
        return self.postprocess(*self.infer(model, image, prompts))

    @torch.inference_mode()
    def infer(self, model: Sam, image: np.ndarray, prompts: Prompts | None = None) -> tuple[list[GeneratedMask], Counter[str]]:
        """Run the part of `generate` that needs the model, up to NMS; the masks are not rasterized yet.

        Arguments are those of `generate`. Pass the result to `postprocess`.
        """
        if prompts is None and self.points_per_side == 0 and self.point_grids is None:
            raise ConfigError("points_per_side=0 leaves no prompts: expected at least 1, or prompts= beside it")
        dropped: Counter[str] = Counter()
        masks: list[GeneratedMask] = []
        for crop in generate_crops(image.shape[0], image.shape[1], self.crop_layers, self.crop_overlap_ratio):
            predictor = Predictor(model, resampling=self.resampling)
            crop_masks = list(self._generate_crop(predictor, image, crop, prompts, dropped))
            scores = [mask.predicted_iou for mask in crop_masks]
            masks += self._nms(crop_masks, scores, self.box_nms_thresh, dropped, "nms")
        if self.crop_layers:  # the smaller a crop, the higher its resolution
            scores = [1 / (mask.crop.width * mask.crop.height) for mask in masks]
            masks = self._nms(masks, scores, self.crop_nms_thresh, dropped, "nms_across_crops")
        return masks, dropped

    @torch.inference_mode()
    def postprocess(self, masks: Sequence[GeneratedMask], dropped: Counter[str]) -> tuple[list[GeneratedMask], Counter[str]]:
        """Run the rest of `generate`: rasterize the masks that `infer` returned, remove small regions, sort, find parents.

        Uses no model and only the CPU, so it can run in another thread. `dropped` is copied, not changed.
        """
        dropped = dropped.copy()
        masks = [mask.rasterized() for mask in masks]
        if self.min_region_area_px:
            masks = self._remove_small_regions(masks, dropped)
        masks.sort(key=lambda mask: -mask.predicted_iou)
        if self.nested_share is not None:
            parent_indices = find_parent_masks([mask.rle for mask in masks], self.nested_share)
            masks = [replace(mask, parent=parent) for mask, parent in zip(masks, parent_indices, strict=True)]
        return masks, dropped

    def _generate_crop(
        self, predictor: Predictor, image: np.ndarray, crop: Crop, prompts: Prompts | None, dropped: Counter[str]
    ) -> Iterator[GeneratedMask]:
        """Yield the masks of a crop that pass the filters."""
        predictor.set_image(np.ascontiguousarray(image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]))
        image_hw, resize = (image.shape[0], image.shape[1]), Resize(crop.height, crop.width, predictor.model.image_size)
        for crop_prompts in self._prompts(crop, prompts, predictor.device):
            # A prompt of more than a click or a box is not ambiguous and gets a single mask (paper, section A).
            ambiguous = crop_prompts.points_xy.shape[1] <= 2
            for decode_job in predictor.decode_jobs(crop_prompts, multimask_output=ambiguous, min_iou=self.min_iou):
                crop_filter = CropFilter(
                    filters=self.filters, prompts=crop_prompts, decode_job=decode_job, crop=crop, image_hw=image_hw, resize=resize
                )
                for masks, counts in self.batcher.map(crop_filter, decode_job.rows, decode_job.chunk_size):
                    dropped.update(counts)
                    yield from masks

    def _prompts(self, crop: Crop, prompts: Prompts | None, device: torch.device) -> Iterator[Prompts]:
        """Yield the point grid of a crop and, for the whole image, the prompts of the caller."""
        if self.point_grids is not None or self.points_per_side:
            per_side = max(1, self.points_per_side // self.crop_points_downscale**crop.layer)
            grid = point_grid(per_side) if self.point_grids is None else self.point_grids[crop.layer]
            yield click_prompts(torch.from_numpy(grid * [crop.width, crop.height]).float().to(device))
        if prompts is not None and crop.layer == 0:
            yield prompts.to(device)

    def _remove_small_regions(self, masks: list[GeneratedMask], dropped: Counter[str]) -> list[GeneratedMask]:
        """Clean the masks and, with `nms_after_regions`, drop the duplicates that cleaning produced."""
        min_area, kept, scores = self.min_region_area_px, [], []
        for mask in masks:
            cleaned = mask.without_small_regions(min_area, keep_largest=self.keep_largest_island)
            if cleaned is not None:
                kept.append(cleaned)
                # A mask that is one small island is returned unchanged, but still counts as one with small regions.
                scores.append(float(cleaned is mask and mask.area >= min_area))
        dropped["small_region"] += len(masks) - len(kept)
        if not self.nms_after_regions:
            return kept
        return self._nms(kept, scores, max(self.box_nms_thresh, self.crop_nms_thresh), dropped, "nms_after_regions")

    def _nms(
        self, masks: list[GeneratedMask], scores: Sequence[float], threshold: float, dropped: Counter[str], reason: str
    ) -> list[GeneratedMask]:
        """Return the masks that NMS keeps, by boxes or by masks, and count the others under `reason`."""
        score_tensor = torch.tensor(scores, dtype=torch.float32)
        if self.nms_by == "masks":
            kept = mask_nms([mask.rle for mask in masks], score_tensor, threshold)
        else:
            boxes = torch.tensor([mask.box_xyxy for mask in masks]).reshape(-1, 4)
            kept = nms(self.filters.comparable_boxes(boxes).float(), score_tensor, threshold)
        dropped[reason] += len(masks) - len(kept)
        return [masks[i] for i in kept.tolist()]
