"""One-to-one matching of the pixels of two edge maps, as in the Berkeley benchmark.

Martin, Fowlkes and Malik 2004, "Learning to detect natural image boundaries", section 3 and its `correspondPixels`: among all
one-to-one matchings of pixels at most `max_distance` apart, those of maximum size, and among these the one of minimum total
distance. The benchmark computes it by Goldberg's CSA on a graph in which unmatched pixels get a few random partners, so its
counts vary in the third digit from run to run; here the assignment is exact and deterministic.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

# Distances are rounded to 1/100 of a pixel, and an unmatched pixel costs 100 times the maximum distance: `multiplier` and
# `outlierCost` of the benchmark's match.cc and correspondPixels.cc.
_COST_PER_PIXEL = 100
_UNMATCHED_COST_FACTOR = 100

PIXELS_PER_SOLVE = 200
"""Number of pixels up to which unconnected edges are solved together, to amortize the start of the solver."""


def match_edges(
    predicted: Bool[np.ndarray, "H W"], ground_truth: Bool[np.ndarray, "H W"], *, max_distance: float
) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Return the matched pixels of each edge map; both have the same number.

    max_distance: maximum distance of matched pixels, in pixels. Raises ValueError if it is negative.
    """
    if max_distance < 0:
        raise ValueError(f"expected a distance in pixels of 0 or more, got {max_distance}")
    pixels, partners, costs = _candidate_pairs(predicted, ground_truth, max_distance)
    # Rows of the assignment are the side with fewer pixels, because each row adds an "unmatched" column to the solver's graph.
    swapped = len(np.unique(pixels)) > len(np.unique(partners))
    rows, columns = (partners, pixels) if swapped else (pixels, partners)
    matched = [group[_assign(rows[group], columns[group], costs[group], max_distance)] for group in _groups(rows, columns)]
    pairs = np.concatenate(matched) if matched else np.zeros(0, np.int64)
    return _pixel_mask(pixels[pairs], predicted.shape), _pixel_mask(partners[pairs], predicted.shape)


def _candidate_pairs(
    predicted: Bool[np.ndarray, "H W"], ground_truth: Bool[np.ndarray, "H W"], max_distance: float
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Return all pairs within the distance: flat index in `predicted`, flat index in `ground_truth`, and cost."""
    radius = int(np.ceil(max_distance))
    width = predicted.shape[1]
    padded = np.pad(predicted, radius)
    rows, columns = np.nonzero(ground_truth)
    down, right = (offsets.ravel() for offsets in np.mgrid[-radius : radius + 1, -radius : radius + 1])
    near = down**2 + right**2 <= max_distance**2
    down, right = down[near], right[near]
    offset, partner = np.nonzero(padded[rows + down[:, None] + radius, columns + right[:, None] + radius])
    pixels = (rows[partner] + down[offset]) * width + columns[partner] + right[offset]
    costs = np.rint(_COST_PER_PIXEL * np.hypot(down, right)).astype(np.int64)[offset]
    return pixels, rows[partner] * width + columns[partner], costs


def _groups(row_pixels: Int[np.ndarray, " N"], column_pixels: Int[np.ndarray, " N"]) -> list[Int[np.ndarray, " n"]]:
    """Split the pairs into groups of connected components, so that no pixel is in two groups.

    The solver's time grows faster than linearly in the size of its graph.
    """
    if not len(row_pixels):
        return []
    rows, row = np.unique(row_pixels, return_inverse=True)
    columns, column = np.unique(column_pixels, return_inverse=True)
    shape = (len(rows) + len(columns),) * 2
    graph = csr_array((np.ones(len(row), np.int8), (row, len(rows) + column)), shape=shape)
    _, component = connected_components(graph, directed=False)
    cumulative_rows = np.cumsum(np.bincount(component[: len(rows)]))
    group = (cumulative_rows // PIXELS_PER_SOLVE)[component[row]]
    order = group.argsort(kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _assign(
    row_pixels: Int[np.ndarray, " N"], column_pixels: Int[np.ndarray, " N"], costs: Int[np.ndarray, " N"], max_distance: float
) -> Int[np.ndarray, " K"]:
    """Return the indices of the pairs that the optimal assignment contains."""
    rows, row = np.unique(row_pixels, return_inverse=True)
    columns, column = np.unique(column_pixels, return_inverse=True)
    unmatched = np.arange(len(rows))
    unmatched_cost = np.ceil(_UNMATCHED_COST_FACTOR * max(max_distance, 1.0) * _COST_PER_PIXEL)
    # Add 1 to all costs, because a sparse matrix has no entries of zero. Every row has one match, so the optimum is the same.
    all_costs = np.concatenate([costs, np.full(len(rows), unmatched_cost)]) + 1.0
    indices = (np.concatenate([row, unmatched]), np.concatenate([column, len(columns) + unmatched]))
    graph = csr_array((all_costs, indices), shape=(len(rows), len(columns) + len(rows)))
    column_of_row = np.empty(len(rows), np.int64)
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    column_of_row[matched_rows] = matched_columns
    return np.flatnonzero(column_of_row[row] == column)


def _pixel_mask(pixels: Int[np.ndarray, " K"], shape: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    mask = np.zeros(shape, bool)
    mask.flat[pixels] = True
    return mask
