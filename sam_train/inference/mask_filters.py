"""The filters that a candidate mask passes on its own, before it is compared with others (paper, section B)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.geometry import Resize
from sam_train.inference.grids import Crop
from sam_train.inference.mask_rasterizer import Cut, LogitPatch, MaskRasterizer
from sam_train.masks import run_lengths_to_rle
from sam_train.model.mask_decoder import DecodeJob
from sam_train.records import Rle
from sam_train.structures import PointLabel, Prompts

# A box edge nearer than this to a crop's inner edge touches it (segment_anything/utils/amg.py).
CROP_EDGE_TOLERANCE_PX = 20

# Logits that are looked at together: what a CPU's caches hold, or as many as are decoded together.
LOGITS_PER_CHUNK = {"cpu": 1 << 20}
LOGITS_PER_CHUNK_ACCELERATOR = 1 << 26

Point = tuple[float, float, int]


@dataclass(frozen=True, kw_only=True)  # no slots: `rle` is kept in its __dict__
class FilteredCandidate:
    """A candidate that passed. Its mask is a patch of logits until it is known to be kept."""

    patch: LogitPatch
    cells: MaskRasterizer
    """On the CPU."""
    crop: Crop
    image_hw: tuple[int, int]
    prompt: tuple[Point, ...]
    """x, y in the image frame and label."""
    box_xyxy: tuple[int, int, int, int]
    """Image frame, right and bottom exclusive."""
    predicted_iou: float
    stability_score: float

    @cached_property
    def rle(self) -> Rle:
        """The mask in the image frame."""
        return run_lengths_to_rle(self.cells.runs(self.patch, self.crop.x, self.crop.y, self.image_hw), *self.image_hw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Thresholds as AutomaticMaskGenerator describes them."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    max_area_fraction: float | None
    inclusive_boxes: bool

    def measured(
        self, padded: Float[Tensor, "N h w"], crop: Crop, image_hw: tuple[int, int], cells: MaskRasterizer, dropped: Counter[str]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " N"], Int[Tensor, "N 4"], Cut]:
        """Which masks pass stability, area and edge; all their stability scores and boxes (image frame), their cuts at 0."""
        stability = self.stability(padded, cells)
        index = _passed(stability >= self.stability_score_thresh, dropped, "stability")
        cut, boxes = cells.cut(padded, 0.0), torch.zeros(len(padded), 4, dtype=torch.long, device=padded.device)
        boxes[index] = cells.boxes(padded[index], cut[index])
        index = index[_passed((boxes[index, 2:] > boxes[index, :2]).all(1), dropped, "empty")]
        boxes += torch.tensor([crop.x, crop.y] * 2, device=boxes.device)
        if self.max_area_fraction is not None:
            limit = self.max_area_fraction * image_hw[0] * image_hw[1]
            index = index[_passed(~self._covers(padded, cut, index, limit, cells), dropped, "covers_image")]
        touching = touches_inner_edge(self.corners(boxes[index]), crop, image_hw)
        return index[_passed(~touching, dropped, "crop_edge")], stability, boxes, cut

    def stability(self, padded: Float[Tensor, "N h w"], cells: MaskRasterizer) -> Float[Tensor, " N"]:
        """IoU of the mask cut at +offset with the mask cut at -offset; 0 if empty, -1 where it cannot reach the threshold."""
        inner, outer = (cells.cut(padded, sign * self.stability_score_offset) for sign in (1, -1))
        most = (cells.pixels(inner.above) + cells.pixels(inner.mixed)) / cells.pixels(outer.above).clamp(min=1)
        open_ = (most >= self.stability_score_thresh).nonzero()[:, 0]
        counts = (cells.count(padded[open_], cut[open_]) for cut in (inner, outer))
        stability = torch.full_like(most, -1 if self.stability_score_thresh > 0 else 0)
        stability[open_] = next(counts) / next(counts).clamp(min=1)
        return stability

    def corners(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes as they are compared: as they are, or with the last pixel in place of the one after it."""
        return boxes_xyxy - boxes_xyxy.new_tensor([0, 0, 1, 1]) if self.inclusive_boxes else boxes_xyxy

    @staticmethod
    def _covers(
        padded: Float[Tensor, "N h w"], cut: Cut, index: Int[Tensor, " n"], limit: float, cells: MaskRasterizer
    ) -> Bool[Tensor, " n"]:
        """Whether masks have at least `limit` pixels; counted where they may."""
        covers = cells.pixels(cut.above[index]) + cells.pixels(cut.mixed[index]) >= limit
        large = index[covers]
        covers[covers.clone()] = cells.count(padded[large], cut[large]) >= limit
        return covers


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFilter:
    """The filters before the prompts of a crop."""

    filters: Filters
    prompts: Prompts
    decoding: DecodeJob
    """Of these prompts."""
    crop: Crop
    image_hw: tuple[int, int]
    resize: Resize
    """Of the crop."""

    @torch.inference_mode()
    def __call__(self, rows: Int[Tensor, " n"]) -> tuple[list[FilteredCandidate], Counter[str]]:
        """What passes of the masks that answer some prompts, and how many do not by reason."""
        dropped: Counter[str] = Counter()
        answers, answer_scores = self.decoding.decode(rows)
        logits, scores, least = answers.flatten(0, 1), answer_scores.flatten(), self.filters.pred_iou_thresh
        sure = scores > least if least > 0 else torch.ones_like(scores, dtype=torch.bool)
        passed = _passed(sure, dropped, "predicted_iou")
        num = max(1, LOGITS_PER_CHUNK.get(scores.device.type, LOGITS_PER_CHUNK_ACCELERATOR) // logits[0].numel())
        found: list[FilteredCandidate] = []
        for some in passed.split(num) if len(passed) else ():
            origins = rows[some // answers.shape[1]]
            found += self._found(logits[some].float(), scores[some], origins, dropped)
        return found, dropped

    def _found(
        self, logits: Float[Tensor, "N h w"], scores: Float[Tensor, " N"], origins: Int[Tensor, " N"], dropped: Counter[str]
    ) -> list[FilteredCandidate]:
        """What passes the filters that look at the masks."""
        cells, on_cpu = (MaskRasterizer.of(self.resize, logits.shape[1], d) for d in (logits.device, torch.device("cpu")))
        padded = cells.padded(logits)
        index, stability, boxes, cut = self.filters.measured(padded, self.crop, self.image_hw, cells, dropped)
        columns = (index, origins[index], stability[index], scores[index], boxes[index])
        return [
            FilteredCandidate(
                patch=cells.patch(padded[i], cut[torch.tensor([i], device=index.device)]),
                cells=on_cpu,
                crop=self.crop,
                image_hw=self.image_hw,
                prompt=self._prompt(origin),
                box_xyxy=tuple(box),
                predicted_iou=score,
                stability_score=stable,
            )
            for i, origin, stable, score, box in zip(*(x.tolist() for x in columns), strict=True)
        ]

    def _prompt(self, row: int) -> tuple[Point, ...]:
        """Its points in the image frame, without padding."""
        points = zip(self.prompts.points_xy[row].tolist(), self.prompts.point_labels[row].tolist(), strict=True)
        return tuple((x + self.crop.x, y + self.crop.y, label) for (x, y), label in points if label != PointLabel.PADDING)


def touches_inner_edge(boxes_xyxy: Tensor, crop: Crop, image_hw: tuple[int, int]) -> Tensor:
    """Whether a box (N x 4, image frame) reaches an edge of its crop that is not an edge of the image."""
    edges = torch.tensor([crop.x, crop.y, crop.x + crop.width, crop.y + crop.height], device=boxes_xyxy.device)
    image_edges = torch.tensor([0, 0, image_hw[1], image_hw[0]], device=boxes_xyxy.device)
    near_crop = (boxes_xyxy - edges).abs() <= CROP_EDGE_TOLERANCE_PX
    near_image = (boxes_xyxy - image_edges).abs() <= CROP_EDGE_TOLERANCE_PX
    return (near_crop & ~near_image).any(1)


def _passed(good: Tensor, dropped: Counter[str], reason: str) -> Tensor:
    """Indices of what is good; what is not is counted."""
    passed = good.nonzero()[:, 0]
    dropped[reason] += len(good) - len(passed)
    return passed
