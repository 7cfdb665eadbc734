"""Which pixels of two maps of lines are the same edge: the one-to-one correspondence of the Berkeley benchmark.

Martin, Fowlkes and Malik 2004, "Learning to detect natural image boundaries", section 3 and its `correspondPixels`: of all
ways to pair pixels at most `max_distance` apart, as many pairs as there can be, and of these the nearest. The benchmark finds
it by Goldberg's CSA on a graph whose unmatched pixels have a few partners drawn at random, so that its own counts vary in the
third digit from run to run; here the assignment is exact and always the same.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

# Distances are rounded to a hundredth of a pixel, and a pair that is not made costs a hundred times the largest distance:
# `multiplier` and `outlierCost` of the benchmark's match.cc and correspondPixels.cc.
_HUNDREDTHS = 100
_UNMATCHED = 100

PIXELS_PER_SOLVE = 200
"""Lines that have nothing to do with each other are solved together up to so many pixels: starting the solver costs, too."""


def match_edges(
    found: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], *, max_distance: float
) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """The pixels of each map that have a partner in the other one; both have equally many.

    max_distance: of partners, in pixels. Raises ValueError for a negative one.
    """
    if max_distance < 0:
        raise ValueError(f"expected a distance in pixels of 0 or more, got {max_distance}")
    pixels, partners, hundredths = _pairs(found, truth, max_distance)
    # The fewer side asks: each of its pixels takes a partner or stays alone, which costs the solver time.
    turned = len(np.unique(pixels)) > len(np.unique(partners))
    askers, asked = (partners, pixels) if turned else (pixels, partners)
    chosen = [part[_assign(askers[part], asked[part], hundredths[part], max_distance)] for part in _parts(askers, asked)]
    pairs = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return _map_of(pixels[pairs], found.shape), _map_of(partners[pairs], found.shape)


def _pairs(
    found: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], max_distance: float
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Every pair near enough: flat index in `found`, flat index in `truth`, distance in hundredths of a pixel."""
    reach = int(np.ceil(max_distance))
    width = found.shape[1]
    padded = np.pad(found, reach)
    rows, columns = np.nonzero(truth)
    down, right = (offsets.ravel() for offsets in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    near = down**2 + right**2 <= max_distance**2
    down, right = down[near], right[near]
    offset, place = np.nonzero(padded[rows + down[:, None] + reach, columns + right[:, None] + reach])
    pixels = (rows[place] + down[offset]) * width + columns[place] + right[offset]
    hundredths = np.rint(_HUNDREDTHS * np.hypot(down, right)).astype(np.int64)[offset]
    return pixels, rows[place] * width + columns[place], hundredths


def _parts(askers: Int[np.ndarray, " N"], asked: Int[np.ndarray, " N"]) -> list[Int[np.ndarray, " n"]]:
    """Pairs that have no pixel in common with those of another part: lines far from each other.

    The solver's time grows faster than its graph, so the graph is cut where it hangs together by nothing.
    """
    if not len(askers):
        return []
    rows, row = np.unique(askers, return_inverse=True)
    columns, column = np.unique(asked, return_inverse=True)
    shape = (len(rows) + len(columns),) * 2
    graph = csr_array((np.ones(len(row), np.int8), (row, len(rows) + column)), shape=shape)
    _, component = connected_components(graph, directed=False)
    askers_up_to = np.cumsum(np.bincount(component[: len(rows)]))
    part = (askers_up_to // PIXELS_PER_SOLVE)[component[row]]
    order = part.argsort(kind="stable")
    return np.split(order, np.flatnonzero(np.diff(part[order])) + 1)


def _assign(
    askers: Int[np.ndarray, " N"], asked: Int[np.ndarray, " N"], hundredths: Int[np.ndarray, " N"], max_distance: float
) -> Int[np.ndarray, " K"]:
    """Which of the N pairs are made."""
    rows, row = np.unique(askers, return_inverse=True)
    columns, column = np.unique(asked, return_inverse=True)
    alone = np.arange(len(rows))
    cost_alone = np.ceil(_UNMATCHED * max(max_distance, 1.0) * _HUNDREDTHS)
    # One more for all: an entry of zero would be no entry. Every row takes one, so that the choice stays the same.
    costs = np.concatenate([hundredths, np.full(len(rows), cost_alone)]) + 1.0
    places = (np.concatenate([row, alone]), np.concatenate([column, len(columns) + alone]))
    graph = csr_array((costs, places), shape=(len(rows), len(columns) + len(rows)))
    of_row = np.empty(len(rows), np.int64)
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    of_row[matched_rows] = matched_columns
    return np.flatnonzero(of_row[row] == column)


def _map_of(pixels: Int[np.ndarray, " K"], shape: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    lines = np.zeros(shape, bool)
    lines.flat[pixels] = True
    return lines
