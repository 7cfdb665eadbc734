"""Zero-shot edges on BSDS500 (paper, sections 7.2 and D.2).

A 16 x 16 grid of clicks with three masks each, without filters by score; box NMS; an edge map of the remaining masks
(`edge_maps`); ODS, OIS, AP and R50 against the boundaries of all annotators (`sam_train.metrics.edge_scores`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from sam_train.errors import ConfigError
from sam_train.evaluation.edge_maps import EdgeMap
from sam_train.evaluation.protocol import EvaluationImage, EvaluationProtocol, Measurement, Summary
from sam_train.files import atomic_write_bytes
from sam_train.geometry import InterpolationTaps, Resize
from sam_train.inference import Predictor, click_prompts
from sam_train.inference.grids import point_grid
from sam_train.masks import masks_to_boxes_xyxy, nms
from sam_train.metrics.edge_scores import MAX_DISTANCE, NUM_THRESHOLDS, edge_counts, edge_scores
from sam_train.metrics.thinning import thin
from sam_train.shards.importers.bsds500 import read_bsds_segmentations
from sam_train.shards.importers.file_pairing import load_image_or_raise, pairs_by_stem
from sam_train.shards.keys import keys_from_paths

PAPER = {
    "paper: SAM ViT-H, 200 test images": {"ods": 0.768, "ois": 0.786, "ap": 0.794, "r50": 0.928},
    "HED": {"ods": 0.788, "ois": 0.808, "ap": 0.840, "r50": 0.923},
    "Canny": {"ods": 0.600, "ois": 0.640, "ap": 0.580},
}


PIXELS_PER_CHUNK = 1 << 24
"""Mask pixels at the size of the image that are computed together: 64 MB of logits."""


class EdgeProtocol(EvaluationProtocol):
    """Zero-shot edge detection on BSDS500.

    images, labels: folders of one split of BSDS500 with STEM.jpg and STEM.mat.
    points_per_side: side of the point grid, 16 (paper). points_per_batch: prompts decoded at once.
    box_nms_thresh: box IoU above which the lower-scored of two masks is dropped; 0.7 as in the generator, as the paper does not
        state it.
    smooth_px, border_px: smoothing of the edge maps and width of the faded border (`EdgeMap.thinned`).
    num_thresholds, max_distance: 99 and 0.0075 of the diagonal (benchmark).
    maps: folder for the edge maps as PNG files, in which 255 is the strongest edge; null writes none.
    """

    def __init__(
        self,
        *,
        images: str | None = None,
        labels: str | None = None,
        points_per_side: int = 16,
        points_per_batch: int = 64,
        box_nms_thresh: float = 0.7,
        smooth_px: float = 0.7,
        border_px: int = 5,
        num_thresholds: int = NUM_THRESHOLDS,
        max_distance: float = MAX_DISTANCE,
        maps: str | None = None,
    ) -> None:
        self.images, self.labels, self.maps = images, labels, maps
        self.points_per_side, self.points_per_batch = points_per_side, points_per_batch
        self.box_nms_thresh, self.smooth_px, self.border_px = box_nms_thresh, smooth_px, border_px
        self.num_thresholds, self.max_distance = num_thresholds, max_distance

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        if not self.images or not self.labels:
            raise ConfigError(
                "edges are evaluated on the files of BSDS500: give protocol.images=BSDS500/data/images/test and"
                " protocol.labels=BSDS500/data/groundTruth/test"
            )
        pairs = pairs_by_stem(Path(self.images), Path(self.labels), ".mat", what="ground truth")
        keys = keys_from_paths([name for name, _, _ in pairs])
        return [
            EvaluationImage(number=number, name=key, source=(image, label))
            for number, (key, (_, image, label)) in enumerate(zip(keys, pairs, strict=True), start=1)
        ]

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        image, label = image_entry.source
        ground_truth = [segment_boundaries(ids) for ids in read_bsds_segmentations(label)]
        strength = self.edges(predictor, load_image_or_raise(image, key=image_entry.name).image)
        if self.maps:
            _, png = cv2.imencode(".png", np.rint(strength * 255).astype(np.uint8))
            atomic_write_bytes(Path(self.maps) / f"{image_entry.name}.png", png.tobytes())
        counts = edge_counts(strength, ground_truth, num_thresholds=self.num_thresholds, max_distance=self.max_distance)
        return {"counts": counts.tolist()}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        if not measurements:
            raise ConfigError("no image was measured: protocol.images has no image")
        scores = edge_scores(np.array([m["counts"] for m in measurements]))
        return Summary(measures={**scores, "num_images": len(measurements)}, paper=PAPER)

    def edges(self, predictor: Predictor, image: np.ndarray) -> Float[np.ndarray, "H W"]:
        """Return the thinned edge map of an H x W x 3 uint8 RGB image, H x W in [0, 1]."""
        predictor.set_image(image)
        edge_map = EdgeMap(*image.shape[:2])
        resize = Resize(image.shape[0], image.shape[1], predictor.model.image_size)
        for part in upsample_logits(self._generate_masks(predictor, resize), resize):
            for probability in part.sigmoid().cpu().numpy():
                edge_map.add(probability)
        return edge_map.thinned(smooth_px=self.smooth_px, border_px=self.border_px)

    def _generate_masks(self, predictor: Predictor, resize: Resize) -> Float[Tensor, "N h w"]:
        """Return logits on the decoder's grid of the masks of the point grid that remain after box NMS."""
        width, height = resize.width, resize.height
        points = torch.from_numpy(point_grid(self.points_per_side) * [width, height]).float().to(predictor.device)
        logits, scores, boxes = [], [], []
        for batch in points.split(self.points_per_batch):
            prediction = predictor.predict_prompts(click_prompts(batch), multimask_output=True)
            logits.append(prediction.mask_logits.flatten(0, 1))
            scores.append(prediction.iou_scores.flatten())
            boxes += [masks_to_boxes_xyxy(part > 0) for part in upsample_logits(logits[-1], resize)]
        return torch.cat(logits)[nms(torch.cat(boxes), torch.cat(scores), self.box_nms_thresh)]


def upsample_logits(logits: Float[Tensor, "N h w"], resize: Resize) -> Iterator[Float[Tensor, "n H W"]]:
    """Yield logits at the size of the image, a few masks at a time: `resize.logits_to_image` as two matrix products.

    Both bilinear steps are linear along each axis, so that one matrix for the rows and one for the columns replaces them.
    """
    rows, columns = (
        _interpolation_matrix(taps, logits.shape[-1]).to(logits) for taps in resize.interpolation_taps(logits.shape[-1])
    )
    for part in logits.split(max(1, PIXELS_PER_CHUNK // (resize.height * resize.width))):
        yield rows @ part @ columns.T


def _interpolation_matrix(taps: InterpolationTaps, grid: int) -> Float[Tensor, "n grid"]:
    matrix = np.zeros((len(taps.first), grid))
    for neighbour in range(3):
        index = (taps.first + neighbour).clip(0, grid - 1)
        np.add.at(matrix, (np.arange(len(index)), index), taps.weights[:, neighbour])
    return torch.from_numpy(matrix)


def segment_boundaries(ids: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Return the boundaries between segments, one pixel wide, as BSDS500's files hold them under "Boundaries".

    A pixel is on a boundary if the pixel below, to the right or diagonally below to the right belongs to another segment; the
    result is thinned (`seg2bmap` of the benchmark). For all 1,633 segmentations of train and val it equals the files' boundaries.
    """
    boundaries = np.zeros(ids.shape, bool)
    boundaries[:-1] |= ids[:-1] != ids[1:]
    boundaries[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    boundaries[:-1, :-1] |= ids[:-1, :-1] != ids[1:, 1:]
    return thin(boundaries)
