"""Edge matching is one-to-one, of maximum size and minimum distance: compared with exhaustive search and another solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sam_train.metrics.edge_matching import match_edges


def dots(shape: tuple[int, int], *places: tuple[int, int]) -> np.ndarray:
    lines = np.zeros(shape, bool)
    for row, column in places:
        lines[row, column] = True
    return lines


def places(lines: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in zip(*np.nonzero(lines), strict=True)]


def distance(a: tuple[int, int], b: tuple[int, int]) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))


def test_a_pixel_has_one_partner() -> None:
    found = dots((5, 9), (2, 2), (2, 3), (2, 4))
    truth = dots((5, 9), (2, 3))
    right, recalled = match_edges(found, truth, max_distance=2)
    assert places(right) == [(2, 3)], "the nearest of three"
    assert places(recalled) == [(2, 3)]


def test_more_pairs_are_better_than_nearer_ones() -> None:
    # Each pixel's nearest is the middle one; to pair both, the left one must go farther.
    found = dots((1, 9), (0, 2), (0, 4))
    truth = dots((1, 9), (0, 0), (0, 3))
    right, recalled = match_edges(found, truth, max_distance=2)
    assert right.sum() == recalled.sum() == 2
    right, recalled = match_edges(found, truth, max_distance=1)
    assert right.sum() == recalled.sum() == 1


def test_the_distance_is_round_and_includes_its_end() -> None:
    truth = dots((11, 11), (5, 5))
    for row, column in itertools.product(range(11), repeat=2):
        found = dots((11, 11), (row, column))
        near = distance((row, column), (5, 5)) <= 4.5
        right, recalled = match_edges(found, truth, max_distance=4.5)
        assert right.any() == recalled.any() == near


@pytest.mark.parametrize("max_distance", [0.0, 0.9])
def test_below_one_pixel_only_equal_positions_match(max_distance: float) -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.random((2, 20, 20)) < 0.3
    right, recalled = match_edges(found, truth, max_distance=max_distance)
    assert np.array_equal(right, found & truth)
    assert np.array_equal(recalled, found & truth)


def test_empty_maps_have_no_matches() -> None:
    nothing = np.zeros((6, 6), bool)
    for found, truth in ((nothing, nothing), (~nothing, nothing), (nothing, ~nothing)):
        right, recalled = match_edges(found, truth, max_distance=3)
        assert not right.any()
        assert not recalled.any()


def best_pairing(found: np.ndarray, truth: np.ndarray, max_distance: float) -> tuple[int, float]:
    """Return the maximum number of pairs and their minimum total distance, by exhaustive search."""
    few, many = sorted((places(found), places(truth)), key=len)
    best = (0, 0.0)
    for chosen in itertools.permutations([*many, *[None] * len(few)], len(few)):
        pairs = [distance(a, b) for a, b in zip(few, chosen, strict=True) if b is not None]
        if all(d <= max_distance for d in pairs):
            best = max(best, (len(pairs), -sum(pairs)))
    return best[0], -best[1]


@pytest.mark.parametrize("seed", range(20))
def test_equals_exhaustive_matching(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (dots((5, 5), *map(tuple, rng.integers(0, 5, (4, 2)).tolist())) for _ in range(2))
    right, recalled = match_edges(found, truth, max_distance=1.5)
    assert right.sum() == recalled.sum() == best_pairing(found, truth, 1.5)[0]
    assert not (right & ~found).any()
    assert not (recalled & ~truth).any()
    assert best_pairing(right, recalled, 1.5) == pytest.approx(best_pairing(found, truth, 1.5)), "a nearest pairing of these"


@pytest.mark.parametrize("seed", range(6))
def test_equals_another_solver(seed: int) -> None:
    """The same assignment as a full matrix of costs, solved by scipy's dense solver: equally many pairs, equally near."""
    rng = np.random.default_rng(seed)
    found, truth = rng.random((2, 40, 50)) < rng.choice([0.02, 0.1, 0.2], 2)[:, None, None]
    limit = 0.0075 * 500
    apart = np.array([[distance(a, b) for b in places(truth)] for a in places(found)])
    cost = np.where(apart <= limit, np.rint(100 * apart), 1e6)
    rows, columns = linear_sum_assignment(cost)
    near = cost[rows, columns] < 1e6
    right, recalled = match_edges(found, truth, max_distance=limit)
    assert right.sum() == recalled.sum() == near.sum()
    of_ours = np.array([[distance(a, b) for b in places(recalled)] for a in places(right)])
    of_ours = np.where(of_ours <= limit, np.rint(100 * of_ours), 1e6)
    assert of_ours[linear_sum_assignment(of_ours)].sum() == cost[rows, columns][near].sum()


def test_swapped_maps_give_the_same_counts() -> None:
    rng = np.random.default_rng(7)
    found, truth = rng.random((2, 60, 60)) < np.array([0.3, 0.1])[:, None, None]
    there = match_edges(found, truth, max_distance=2.5)
    back = match_edges(truth, found, max_distance=2.5)
    assert [m.sum() for m in there] == [m.sum() for m in back]


def test_rejects_a_negative_distance() -> None:
    with pytest.raises(ValueError, match="distance in pixels of 0 or more, got -1"):
        match_edges(np.zeros((5, 5), bool), np.zeros((5, 5), bool), max_distance=-1)
