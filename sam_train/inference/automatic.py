"""Masks of everything in an image, with the interface of segment_anything's automatic mask generator."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam_train.inference.argument_checks import check_choice, check_integer, check_number, check_type
from sam_train.inference.generator_types import GeneratedMask
from sam_train.inference.grid_mask_generator import GridMaskGenerator
from sam_train.inference.grids import MAX_CROP_LAYERS
from sam_train.inference.image_input import ImageInput, to_rgb
from sam_train.model import Sam
from sam_train.rle import rle_run_lengths

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class AutomaticMaskGenerator:
    """Segments everything in an image with the arguments, defaults and results of SamAutomaticMaskGenerator.

    docs/api.md lists the differences. `GridMaskGenerator` is the same generator with the paper's settings and more filters.

    Example:

        generator = AutomaticMaskGenerator(predictor.model, points_per_side=16)
        annotations = generator.generate("photo.jpg")
        annotations[0]["segmentation"]   # H x W bool
        annotations[0]["predicted_iou"]  # the highest of all masks

    model: in eval mode, on the device that computes.
    points_per_side: side of the point grid over the whole image; None with `point_grids`.
    points_per_batch: prompts decoded at once; halved if they do not fit into GPU memory.
    pred_iou_thresh, stability_score_thresh, stability_score_offset: filters of the masks (paper, section B).
    box_nms_thresh, crop_nms_thresh: box IoU above which the lower-ranked of two masks is dropped, within and across crops.
    crop_n_layers: layers of zoomed-in crops; layer i has 2^i x 2^i crops and points_per_side /
        crop_n_points_downscale_factor ** i points per side.
    crop_overlap_ratio: overlap of the crops of the first layer as a fraction of the short side.
    point_grids: points of each layer, N x 2, x and y as fractions of the crop's sides, in place of points_per_side.
    min_mask_region_area: holes and islands smaller than this, in pixels, are filled and removed; 0 disables cleaning.
    output_mode: form of each "segmentation": "binary_mask" (H x W bool), "uncompressed_rle" or "coco_rle".

    Raises ValueError, with the argument's name, for a value out of range, and unless exactly one of points_per_side and
    point_grids is given.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: float = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        check_type("model", model, Sam, "load_checkpoint(path) returns one; a predictor has it as predictor.model")
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids: set points_per_side=None with point_grids")
        if points_per_side is not None:
            check_integer("points_per_side", points_per_side, minimum=1)
        check_integer("crop_n_layers", crop_n_layers, minimum=0, maximum=MAX_CROP_LAYERS)
        check_integer("crop_n_points_downscale_factor", crop_n_points_downscale_factor, minimum=1)
        check_number("min_mask_region_area", min_mask_region_area, minimum=0)
        check_choice("output_mode", output_mode, OUTPUT_MODES)
        self.model, self.output_mode = model, output_mode
        self.grid_generator = GridMaskGenerator(
            points_per_side=points_per_side or 0,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_nms_thresh=crop_nms_thresh,
            crop_layers=crop_n_layers,
            crop_points_downscale=crop_n_points_downscale_factor,
            crop_overlap_ratio=crop_overlap_ratio,
            max_area_fraction=None,
            min_region_area_px=math.ceil(min_mask_region_area),
            keep_largest_island=True,
            nms_after_regions=True,
            inclusive_boxes=True,
            resampling="bilinear",
            point_grids=point_grids,
        )

    def generate(self, image: ImageInput) -> list[dict[str, Any]]:
        """Return one dictionary per mask, as SA-1B's annotations, highest predicted IoU first.

        image: as `Predictor.set_image` takes it, RGB.

        Keys: segmentation (see output_mode), area, bbox (x, y, width, height; width and height are one less than COCO's, as in
        the released code), predicted_iou, point_coords, stability_score and crop_box (x, y, width, height).

        Raises ValueError for anything that is not an image.
        """
        return [self._annotation(mask) for mask in self.generate_with_counts(image)[0]]

    def generate_with_counts(self, image: ImageInput) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return the masks of `generate` as typed objects, and the number of dropped candidates by filter.

        `GridMaskGenerator.generate` lists the names of the filters.
        """
        return self.grid_generator.generate(self.model, to_rgb(image))

    def _annotation(self, mask: GeneratedMask) -> dict[str, Any]:
        left, top, right, bottom = mask.box_xyxy
        segmentations = {
            "binary_mask": lambda: mask.mask,
            "uncompressed_rle": lambda: {"size": mask.rle["size"], "counts": rle_run_lengths(mask.rle["counts"])},
            "coco_rle": lambda: mask.rle,
        }
        return {
            "segmentation": segmentations[self.output_mode](),
            "area": mask.area,
            "bbox": [left, top, right - 1 - left, bottom - 1 - top],
            "predicted_iou": float(mask.predicted_iou),
            "point_coords": [[float(x), float(y)] for x, y, _ in mask.prompt_points],
            "stability_score": float(mask.stability_score),
            "crop_box": [mask.crop.x, mask.crop.y, mask.crop.width, mask.crop.height],
        }
