"""The interface of detectors of faces or plates, and their detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from sam_train.masks import nms

NMS_IOU = 0.3
"""NMS threshold. Boxes with a larger IoU are one object detected twice: at two scales, or in neighbouring cells of a network."""
MAX_CONTAINED_FRACTION = 0.99
"""If more than this fraction of a box lies in a higher-scored box, the box is a part of that object and is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """Detected boxes in the frame of the input image."""

    boxes_xyxy: np.ndarray
    """N x 4 float64, pixels, right and bottom exclusive; may extend beyond the image."""
    scores: np.ndarray
    """N float64, 0..1."""


@runtime_checkable  # the runtime type checks of the tests need it
class Detector(Protocol):
    """Detector of one kind of object that must be redacted. Any class with these two methods can be configured."""

    def detect(self, image: np.ndarray) -> Detections:
        """Return all detections above the detector's threshold in an HWC uint8 RGB image of any size."""
        ...

    def identity(self) -> str:
        """Return a string that changes with everything that affects the detections, including the weights."""
        ...


def empty_detections() -> Detections:
    """Return no detections."""
    return Detections(boxes_xyxy=np.zeros((0, 4)), scores=np.zeros(0))


def merge_detections(parts: Sequence[Detections]) -> Detections:
    """Merge several sets of detections of one image: NMS, then removal of contained boxes. Highest score first."""
    if not parts:
        return empty_detections()
    boxes = np.concatenate([part.boxes_xyxy for part in parts]).astype(np.float64)
    scores = np.concatenate([part.scores for part in parts]).astype(np.float64)
    kept = nms(torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores), NMS_IOU).numpy()
    boxes, scores = boxes[kept], scores[kept]
    not_contained = [
        not (_contained_fraction(box, boxes[:index]) > MAX_CONTAINED_FRACTION).any() for index, box in enumerate(boxes)
    ]
    return Detections(boxes_xyxy=boxes[not_contained], scores=scores[not_contained])


def _contained_fraction(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the fraction of the box that lies in each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(1) / max((box[2:] - box[:2]).prod(), 1e-9)
