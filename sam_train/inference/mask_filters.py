"""The filters that test each candidate mask on its own, before masks are compared with each other (paper, section B)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.geometry import Resize
from sam_train.inference.argument_checks import check_integer, check_number
from sam_train.inference.generator_types import GeneratedMask, Point
from sam_train.inference.grids import Crop
from sam_train.inference.mask_rasterizer import CellMasks, MaskRasterizer
from sam_train.model.mask_decoder import DecodeJob
from sam_train.structures import PointLabel, Prediction, Prompts

# A box edge nearer than this to a crop's inner edge touches it (segment_anything/utils/amg.py).
CROP_EDGE_TOLERANCE_PX = 20

# Logits that are filtered together: as many as fit into a CPU's caches, or all that a GPU decodes together.
LOGITS_PER_CHUNK = {"cpu": 1 << 20}
LOGITS_PER_CHUNK_ACCELERATOR = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Thresholds of the filters; `GridMaskGenerator` documents them."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    max_area_fraction: float | None
    inclusive_boxes: bool

    def apply(
        self, padded: Float[Tensor, "N h w"], crop: Crop, image_hw: tuple[int, int], cells: MaskRasterizer, dropped: Counter[str]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " N"], Int[Tensor, "N 4"], CellMasks]:
        """Apply the stability, area and crop-edge filters, and count the dropped masks by reason in `dropped`.

        Returns the indices of the masks that pass, and for all N masks the stability scores, the boxes (XYXY, image frame)
        and the cells cut at logit 0. Scores and boxes of dropped masks may be incomplete.
        """
        min_stability = self.stability_score_thresh
        stability = cells.stability_scores(padded, self.stability_score_offset, min_score=min_stability)
        index = _passing(stability >= min_stability, dropped, "stability")
        cut, boxes = cells.cut(padded, 0.0), torch.zeros(len(padded), 4, dtype=torch.long, device=padded.device)
        boxes[index] = cells.boxes(padded[index], cut[index])
        index = index[_passing((boxes[index, 2:] > boxes[index, :2]).all(1), dropped, "empty")]
        boxes += torch.tensor([crop.x, crop.y] * 2, device=boxes.device)
        if self.max_area_fraction is not None:
            limit = self.max_area_fraction * image_hw[0] * image_hw[1]
            index = index[_passing(~self._covers(padded, cut, index, limit, cells), dropped, "covers_image")]
        touching = touches_inner_edge(self.comparable_boxes(boxes[index]), crop, image_hw)
        return index[_passing(~touching, dropped, "crop_edge")], stability, boxes, cut

    def comparable_boxes(self, boxes_xyxy: Tensor) -> Tensor:
        """Return the boxes (N x 4) for edge tests and box IoU: unchanged, or with inclusive right and bottom."""
        return boxes_xyxy - boxes_xyxy.new_tensor([0, 0, 1, 1]) if self.inclusive_boxes else boxes_xyxy

    @staticmethod
    def _covers(
        padded: Float[Tensor, "N h w"], cut: CellMasks, index: Int[Tensor, " n"], limit: float, cells: MaskRasterizer
    ) -> Bool[Tensor, " n"]:
        """Return whether each mask has at least `limit` pixels; only masks whose upper bound reaches it are counted."""
        covers = cells.count_pixels(cut.above[index]) + cells.count_pixels(cut.mixed[index]) >= limit
        large = index[covers]
        covers[covers.clone()] = cells.areas(padded[large], cut[large]) >= limit
        return covers


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFilter:
    """Decodes prompts of one crop and filters their masks."""

    filters: Filters
    prompts: Prompts
    decode_job: DecodeJob
    """Decoding of `prompts`."""
    crop: Crop
    image_hw: tuple[int, int]
    resize: Resize
    """Resizing of the crop to the model frame."""

    @torch.inference_mode()
    def __call__(self, rows: Int[Tensor, " n"]) -> tuple[list[GeneratedMask], Counter[str]]:
        """Return the masks of some prompts (rows of `prompts`) that pass all filters, and counts of the others by reason."""
        dropped: Counter[str] = Counter()
        mask_logits, iou_scores = self.decode_job.decode(rows)
        logits, scores, min_iou = mask_logits.flatten(0, 1), iou_scores.flatten(), self.filters.pred_iou_thresh
        confident = scores > min_iou if min_iou > 0 else torch.ones_like(scores, dtype=torch.bool)
        passing = _passing(confident, dropped, "predicted_iou")
        masks: list[GeneratedMask] = []
        for chunk in _split(passing, logits):
            prompt_rows = rows[chunk // mask_logits.shape[1]]
            masks += self._filter_masks(logits[chunk].float(), scores[chunk], prompt_rows, dropped)
        return masks, dropped

    def _filter_masks(
        self, logits: Float[Tensor, "N h w"], scores: Float[Tensor, " N"], prompt_rows: Int[Tensor, " N"], dropped: Counter[str]
    ) -> list[GeneratedMask]:
        """Return the masks that pass the filters that need the logits; they are rasterized later, on the CPU."""
        cells, on_cpu = (MaskRasterizer.for_image(self.resize, logits.shape[1], d) for d in (logits.device, torch.device("cpu")))
        padded = cells.pad(logits)
        index, stability, boxes, cut = self.filters.apply(padded, self.crop, self.image_hw, cells, dropped)
        columns = (index, prompt_rows[index], stability[index], scores[index], boxes[index])
        masks = []
        for i, prompt_row, stable, score, (left, top, right, bottom) in zip(*(x.tolist() for x in columns), strict=True):
            patch = cells.crop_logits(padded[i], cut[torch.tensor([i], device=index.device)])
            masks.append(
                GeneratedMask(
                    segmentation=partial(on_cpu.encode_rle, patch, self.crop.x, self.crop.y, self.image_hw),
                    box_xyxy=(left, top, right, bottom),
                    predicted_iou=score,
                    stability_score=stable,
                    crop=self.crop,
                    prompt_points=self._prompt_points(prompt_row),
                )
            )
        return masks

    def _prompt_points(self, row: int) -> tuple[Point, ...]:
        """Return the points of a prompt in the image frame, without padding."""
        points = zip(self.prompts.points_xy[row].tolist(), self.prompts.point_labels[row].tolist(), strict=True)
        return tuple((x + self.crop.x, y + self.crop.y, label) for (x, y), label in points if label != PointLabel.PADDING)


def check_mask_filters(pred_iou_thresh: float, stability_score_thresh: float, min_region_area_px: int) -> None:
    """Raise ValueError, with the argument's name, for a threshold of `filter_masks` out of range."""
    check_number("pred_iou_thresh", pred_iou_thresh, maximum=1)
    check_number("stability_score_thresh", stability_score_thresh, maximum=1)
    check_integer("min_region_area_px", min_region_area_px, minimum=0)


@torch.inference_mode()
def filter_masks(
    prediction: Prediction,
    resize: Resize,
    *,
    pred_iou_thresh: float,
    stability_score_thresh: float,
    min_region_area_px: int,
    dropped: Counter[str],
) -> list[tuple[int, GeneratedMask]]:
    """Drop masks of a whole image by predicted IoU and stability, rasterize the others and remove their small regions.

    prediction: one mask per prompt (M = 1). resize: resizing of the image to the model frame.

    Returns the masks that remain, each after the index of its prompt. The others are counted in `dropped` under
    predicted_iou, stability, empty or small_region.
    """
    logits, iou_scores, image_hw = prediction.mask_logits[:, 0], prediction.iou_scores[:, 0], (resize.height, resize.width)
    cells, on_cpu = (MaskRasterizer.for_image(resize, logits.shape[1], d) for d in (logits.device, torch.device("cpu")))
    masks = []
    for chunk in _split(_passing(iou_scores >= pred_iou_thresh, dropped, "predicted_iou"), logits):
        padded = cells.pad(logits[chunk].float())
        stability = cells.stability_scores(padded, min_score=stability_score_thresh)
        index, cut = _passing(stability >= stability_score_thresh, dropped, "stability"), cells.cut(padded, 0.0)
        index = index[_passing(cells.areas(padded[index], cut[index]) > 0, dropped, "empty")]
        columns = (index, chunk[index], iou_scores[chunk[index]], stability[index])
        for i, prompt, predicted_iou, score in zip(*(x.tolist() for x in columns), strict=True):
            patch = cells.crop_logits(padded[i], cut[torch.tensor([i], device=index.device)])
            rle = on_cpu.encode_rle(patch, 0, 0, image_hw)
            mask = GeneratedMask.from_rle(rle, predicted_iou=predicted_iou, stability_score=score)
            cleaned = mask.without_small_regions(min_region_area_px) if min_region_area_px else mask
            if cleaned is None:
                dropped["small_region"] += 1
            else:
                masks.append((prompt, cleaned))
    return masks


def touches_inner_edge(boxes_xyxy: Tensor, crop: Crop, image_hw: tuple[int, int]) -> Tensor:
    """Return whether each box (N x 4, image frame) touches an edge of its crop that is not an edge of the image."""
    edges = torch.tensor([crop.x, crop.y, crop.x + crop.width, crop.y + crop.height], device=boxes_xyxy.device)
    image_edges = torch.tensor([0, 0, image_hw[1], image_hw[0]], device=boxes_xyxy.device)
    near_crop = (boxes_xyxy - edges).abs() <= CROP_EDGE_TOLERANCE_PX
    near_image = (boxes_xyxy - image_edges).abs() <= CROP_EDGE_TOLERANCE_PX
    return (near_crop & ~near_image).any(1)


def _split(index: Int[Tensor, " n"], logits: Float[Tensor, "N h w"]) -> Sequence[Tensor]:
    """Split indices of masks into chunks that are filtered together."""
    if not len(index):
        return ()
    num = LOGITS_PER_CHUNK.get(logits.device.type, LOGITS_PER_CHUNK_ACCELERATOR) // logits[0].numel()
    return index.split(max(1, num))


def _passing(passes: Tensor, dropped: Counter[str], reason: str) -> Tensor:
    """Return the indices at which `passes` is true, and count the others under `reason`."""
    passing = passes.nonzero()[:, 0]
    dropped[reason] += len(passes) - len(passing)
    return passing
