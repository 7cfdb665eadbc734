"""Average recall of proposals, in counts that add up over images.

COCO's AR (Hosang et al. 2015; `COCOeval` of pycocotools with `useCats = 0` and one `maxDets`): the share of true objects that a
proposal matches, over ten thresholds of IoU. Without categories a proposal competes with those of its own image only, so
COCO's figure over all images is a quotient of sums, and images can be measured apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from sam_train.records import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""COCO's ranges of a true object's area in pixels, both ends in."""


def proposal_ious(proposals: Sequence[Rle], truths: Sequence[Rle]) -> Float[np.ndarray, "N G"]:
    """Mask IoU of each proposal with each true object of one image."""
    if not proposals or not truths:
        return np.zeros((len(proposals), len(truths)))
    return np.asarray(coco_mask.iou(list(proposals), list(truths), [0] * len(truths)))


def count_recalled_objects(ious: Float[np.ndarray, "N G"]) -> Int[np.ndarray, " T"]:
    """How many of G true objects are matched at each of the ten thresholds, by N proposals, best first.

    As COCOeval matches: each proposal in turn takes the free object of highest IoU, of equal ones the last, if that reaches the
    threshold. So which objects are asked about matters: for a part of them give their columns alone.
    """
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free: Bool[np.ndarray, "T G"] = np.ones((len(limits), ious.shape[1]), bool)
    rows = np.arange(len(limits))
    for overlap in ious[ious.max(1, initial=0) >= limits[0]]:
        reached = np.where(free & (overlap >= limits[:, None]), overlap, -1.0)
        last_best = reached.shape[1] - 1 - reached[:, ::-1].argmax(1)
        hit = reached[rows, last_best] >= 0
        free[rows[hit], last_best[hit]] = False
    return (~free).sum(1)


def average_recall(matched: Sequence[Sequence[int]], num_truths: int) -> float:
    """Mean over thresholds of the share matched, from each image's `count_recalled_objects`; 0 when there is no true object."""
    return float(np.sum(np.reshape(matched, (-1, len(IOU_THRESHOLDS))), 0).mean() / max(1, num_truths))
