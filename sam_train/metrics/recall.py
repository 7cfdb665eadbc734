"""Average recall of proposals, from counts that add up over images.

COCO's AR (Hosang et al. 2015; `COCOeval` of pycocotools with `useCats = 0` and one `maxDets`): the share of ground-truth objects
that a proposal matches, over ten IoU thresholds. Without categories a proposal competes only with those of its own image, so
COCO's value over all images is a quotient of sums, and images can be evaluated separately.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from sam_train.records import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""COCO's ranges of a ground-truth object's area in pixels, both ends inclusive."""


def proposal_ious(proposals: Sequence[Rle], objects: Sequence[Rle]) -> Float[np.ndarray, "N G"]:
    """Return the mask IoU of each proposal with each ground-truth object of one image."""
    if not proposals or not objects:
        return np.zeros((len(proposals), len(objects)))
    return np.asarray(coco_mask.iou(list(proposals), list(objects), [0] * len(objects)))


def count_recalled_objects(ious: Float[np.ndarray, "N G"]) -> Int[np.ndarray, " T"]:
    """Count how many of G ground-truth objects N proposals, best first, match at each of the ten IoU thresholds.

    The matching is that of COCOeval: each proposal in turn takes the unmatched object of highest IoU, the last of equal ones, if
    it reaches the threshold. For a subset of the objects (such as an area range) pass only their columns.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    unmatched: Bool[np.ndarray, "T G"] = np.ones((len(thresholds), ious.shape[1]), bool)
    rows = np.arange(len(thresholds))
    for overlap in ious[ious.max(1, initial=0) >= thresholds[0]]:
        candidates = np.where(unmatched & (overlap >= thresholds[:, None]), overlap, -1.0)
        last_best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(1)
        is_match = candidates[rows, last_best] >= 0
        unmatched[rows[is_match], last_best[is_match]] = False
    return (~unmatched).sum(1)


def average_recall(recalled: Sequence[Sequence[int]], num_objects: int) -> float:
    """Return the recall averaged over the thresholds; 0 if there are no objects.

    recalled: `count_recalled_objects` of each image. num_objects: number of ground-truth objects of all images.
    """
    return float(np.sum(np.reshape(recalled, (-1, len(IOU_THRESHOLDS))), 0).mean() / max(1, num_objects))
