"""What a detector of faces or plates is, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from sam_train.masks import nms

SAME_IOU = 0.3
"""Boxes that overlap more are one object seen twice: at two scales, or by two neighbouring cells of a network."""
INSIDE = 0.99
"""A box of which so much lies in a better one is a part of it, cut by a tile or seen too near, and covered with it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """Boxes in the frame of the picture that was looked at."""

    boxes_xyxy: np.ndarray
    """N x 4 float64, pixels, right and bottom exclusive; may reach over the picture's edge."""
    scores: np.ndarray
    """N float64, 0..1."""


@runtime_checkable  # so that the type checks of the tests can ask
class Detector(Protocol):
    """Finds one kind of thing that must not be recognised. Any class with these two methods will do."""

    def detect(self, image: np.ndarray) -> Detections:
        """All there are in an HWC uint8 RGB picture of any size, above a threshold of the detector's own."""
        ...

    def identity(self) -> str:
        """Changes with whatever changes the answers, weights included."""
        ...


def empty_detections() -> Detections:
    """None at all."""
    return Detections(boxes_xyxy=np.zeros((0, 4)), scores=np.zeros(0))


def merge_detections(parts: Sequence[Detections]) -> Detections:
    """Several looks at one picture as one, each object once, best score first."""
    if not parts:
        return empty_detections()
    boxes = np.concatenate([part.boxes_xyxy for part in parts]).astype(np.float64)
    scores = np.concatenate([part.scores for part in parts]).astype(np.float64)
    kept = nms(torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores), SAME_IOU).numpy()
    boxes, scores = boxes[kept], scores[kept]
    whole = [not (_inside(box, boxes[:place]) > INSIDE).any() for place, box in enumerate(boxes)]
    return Detections(boxes_xyxy=boxes[whole], scores=scores[whole])


def _inside(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the box that lies in each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(1) / max((box[2:] - box[:2]).prod(), 1e-9)
