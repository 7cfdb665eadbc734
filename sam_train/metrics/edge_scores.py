"""ODS, OIS, AP and R50 of edge maps, as BSDS500's benchmark has them.

Arbelaez et al. 2011, section 3.1; in every detail as `edgesEvalImg` and `edgesEvalDir` of Dollar and Zitnick's toolbox, whose
figures are those of the benchmark's own `boundaryBench`, and R50 besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from sam_train.metrics.edge_matching import match_edges
from sam_train.metrics.thinning import thin

NUM_THRESHOLDS = 99
MAX_DISTANCE = 0.0075
"""Of partners, as a share of the image's diagonal."""

_EPS = np.finfo(np.float64).eps


def edge_thresholds(num_thresholds: int = NUM_THRESHOLDS) -> Float[np.ndarray, " K"]:
    """K values evenly between 0 and 1, without either: 0.01, 0.02 ... 0.99."""
    return np.linspace(1 / (num_thresholds + 1), 1 - 1 / (num_thresholds + 1), num_thresholds)


def edge_counts(
    strength: Float[np.ndarray, "H W"],
    people: Sequence[Bool[np.ndarray, "H W"]],
    *,
    num_thresholds: int = NUM_THRESHOLDS,
    max_distance: float = MAX_DISTANCE,
) -> Int[np.ndarray, "4 K"]:
    """What one image adds up: rows are true pixels found, true pixels, found pixels that are right, found pixels.

    strength: an edge map in [0, 1]; at each threshold it is cut, thinned and held against every person's lines. A person's
    pixel counts as found if it has a partner; a found pixel is right if it has one in any person's lines.
    """
    distance = max_distance * float(np.hypot(*strength.shape))
    counts = np.zeros((4, num_thresholds), np.int64)
    before: np.ndarray | None = None
    for k, threshold in enumerate(edge_thresholds(num_thresholds)):
        lines = thin(strength >= threshold)
        if before is not None and np.array_equal(lines, before):
            counts[:, k] = counts[:, k - 1]
            continue
        right = np.zeros(lines.shape, bool)
        for truth in people:
            matched, recalled = match_edges(lines, truth, max_distance=distance)
            right |= matched
            counts[0, k] += recalled.sum()
            counts[1, k] += truth.sum()
        counts[2, k], counts[3, k] = right.sum(), lines.sum()
        before = lines
    return counts


def edge_scores(counts: Int[np.ndarray, "N 4 K"]) -> dict[str, float]:
    """ODS (best F of one threshold for all images, and where), OIS (F of each image's own best), AP and R50 of N images.

    AP is the sum of the precisions at recalls 0, 0.01 ... 1 that the curve reaches, over 100, as the toolbox has it. R50 is
    the recall where precision is 0.5, 0 if precision never is so high.
    """
    cuts = edge_thresholds(counts.shape[2])
    recall, precision, _ = _rates(counts.sum(0))
    ods = _best_between(cuts, recall, precision)
    best = np.array([image[:, _rates(image)[2].argmax()] for image in counts]).reshape(-1, 4)
    ois = _rates(best.sum(0))[2]
    recalls, first = np.unique(recall, return_index=True)
    precisions = precision[first]
    return {
        "ods": ods["f"],
        "ois": float(ois),
        "ap": _average_precision(recalls, precisions),
        "r50": _recall_at_half(recalls, precisions),
        "ods_threshold": ods["threshold"],
        "ods_precision": ods["precision"],
        "ods_recall": ods["recall"],
    }


def _rates(counts: Int[np.ndarray, "4 ..."]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall, precision and F."""
    recall, precision = (np.asarray(counts[i] / np.maximum(_EPS, counts[i + 1])) for i in (0, 2))
    return recall, precision, _f(precision, recall)


def _f(precision: ArrayLike, recall: ArrayLike) -> np.ndarray:
    product, sum_ = np.multiply(precision, recall), np.add(precision, recall)
    return np.asarray(2 * product / np.maximum(_EPS, sum_))


def _best_between(cuts: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> dict[str, float]:
    """The best F on the straight lines between neighbouring thresholds, a hundred points each."""
    share = np.linspace(0, 1, 100)
    between = [np.outer(v[1:], share) + np.outer(v[:-1], 1 - share) for v in (cuts, recall, precision)]
    threshold, recall, precision = [v.ravel() for v in between] if len(cuts) > 1 else (cuts, recall, precision)
    scores = _f(precision, recall)
    best = int(scores.argmax())
    return {
        "f": float(scores[best]),
        "threshold": float(threshold[best]),
        "recall": float(recall[best]),
        "precision": float(precision[best]),
    }


def _average_precision(recalls: np.ndarray, precisions: np.ndarray) -> float:
    """Recalls ascend and are all different."""
    if len(recalls) < 2:
        return 0.0
    at = np.linspace(0, 1, 101)
    return float(np.interp(at, recalls, precisions)[(at >= recalls[0]) & (at <= recalls[-1])].sum() / 100)


def _recall_at_half(recalls: np.ndarray, precisions: np.ndarray) -> float:
    # The toolbox sorts by recall, highest first, before it takes the first of equal precisions.
    values, first = np.unique(precisions[::-1], return_index=True)
    if values[-1] < 0.5:
        return 0.0
    return float(np.interp(max(values[0], 0.5), values, recalls[::-1][first]))
