"""ODS, OIS, AP and R50 of edge maps, as defined by the BSDS500 benchmark.

Arbelaez et al. 2011, section 3.1. The implementation follows `edgesEvalImg` and `edgesEvalDir` of Dollar and Zitnick's toolbox,
which give the results of the benchmark's `boundaryBench` and, in addition, R50.
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
"""Maximum distance of matched pixels as a share of the image diagonal."""

_EPS = np.finfo(np.float64).eps


def edge_thresholds(num_thresholds: int = NUM_THRESHOLDS) -> Float[np.ndarray, " K"]:
    """Return K evenly spaced thresholds in the open interval (0, 1): 0.01, 0.02 ... 0.99."""
    return np.linspace(1 / (num_thresholds + 1), 1 - 1 / (num_thresholds + 1), num_thresholds)


def edge_counts(
    strength: Float[np.ndarray, "H W"],
    annotations: Sequence[Bool[np.ndarray, "H W"]],
    *,
    num_thresholds: int = NUM_THRESHOLDS,
    max_distance: float = MAX_DISTANCE,
) -> Int[np.ndarray, "4 K"]:
    """Return the counts of one image: matched annotated pixels, annotated pixels, correct predicted pixels, predicted pixels.

    strength: predicted edge map in [0, 1]; at each threshold it is binarized, thinned and matched with each annotation.
    annotations: edge map of each annotator. Their pixels are counted over all annotators; a predicted pixel is correct if it is
        matched in any annotation.
    max_distance: maximum distance of matched pixels, as a share of the image diagonal.
    """
    distance = max_distance * float(np.hypot(*strength.shape))
    counts = np.zeros((4, num_thresholds), np.int64)
    previous: np.ndarray | None = None
    for k, threshold in enumerate(edge_thresholds(num_thresholds)):
        edges = thin(strength >= threshold)
        if previous is not None and np.array_equal(edges, previous):
            counts[:, k] = counts[:, k - 1]
            continue
        correct = np.zeros(edges.shape, bool)
        for annotation in annotations:
            matched, recalled = match_edges(edges, annotation, max_distance=distance)
            correct |= matched
            counts[0, k] += recalled.sum()
            counts[1, k] += annotation.sum()
        counts[2, k], counts[3, k] = correct.sum(), edges.sum()
        previous = edges
    return counts


def edge_scores(counts: Int[np.ndarray, "N 4 K"]) -> dict[str, float]:
    """Return ODS, OIS, AP and R50 of N images from their `edge_counts`.

    ODS is the best F with one threshold for all images (with its threshold, precision and recall), OIS the F with the best
    threshold of each image. AP is the sum of the precisions at recalls 0, 0.01 ... 1 within the range of the curve, over 100, as
    in the toolbox. R50 is the recall at precision 0.5, 0 if precision is never that high.
    """
    thresholds = edge_thresholds(counts.shape[2])
    recall, precision, _ = _recall_precision_f(counts.sum(0))
    ods = _best_f(thresholds, recall, precision)
    best = np.array([image[:, _recall_precision_f(image)[2].argmax()] for image in counts]).reshape(-1, 4)
    ois = _recall_precision_f(best.sum(0))[2]
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


def _recall_precision_f(counts: Int[np.ndarray, "4 ..."]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    recall, precision = (np.asarray(counts[i] / np.maximum(_EPS, counts[i + 1])) for i in (0, 2))
    return recall, precision, _f_measure(precision, recall)


def _f_measure(precision: ArrayLike, recall: ArrayLike) -> np.ndarray:
    product, sum_ = np.multiply(precision, recall), np.add(precision, recall)
    return np.asarray(2 * product / np.maximum(_EPS, sum_))


def _best_f(thresholds: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> dict[str, float]:
    """Return the best F, interpolating linearly between adjacent thresholds at 100 points each."""
    weight = np.linspace(0, 1, 100)
    interpolated = [np.outer(v[1:], weight) + np.outer(v[:-1], 1 - weight) for v in (thresholds, recall, precision)]
    threshold, recall, precision = [v.ravel() for v in interpolated] if len(thresholds) > 1 else (thresholds, recall, precision)
    scores = _f_measure(precision, recall)
    best = int(scores.argmax())
    return {
        "f": float(scores[best]),
        "threshold": float(threshold[best]),
        "recall": float(recall[best]),
        "precision": float(precision[best]),
    }


def _average_precision(recalls: np.ndarray, precisions: np.ndarray) -> float:
    """Return AP from a curve whose recalls are strictly ascending."""
    if len(recalls) < 2:
        return 0.0
    at = np.linspace(0, 1, 101)
    return float(np.interp(at, recalls, precisions)[(at >= recalls[0]) & (at <= recalls[-1])].sum() / 100)


def _recall_at_half(recalls: np.ndarray, precisions: np.ndarray) -> float:
    # As in the toolbox, sort by descending recall, then take the first of equal precisions.
    values, first = np.unique(precisions[::-1], return_index=True)
    if values[-1] < 0.5:
        return 0.0
    return float(np.interp(max(values[0], 0.5), values, recalls[::-1][first]))
