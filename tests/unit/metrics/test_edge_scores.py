"""Edge counts and scores: cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sam_train.metrics.edge_scores import edge_counts, edge_scores, edge_thresholds


def line(row: int, length: int = 40, height: int = 30) -> np.ndarray:
    lines = np.zeros((height, 60), bool)
    lines[row, 5 : 5 + length] = True
    return lines


def counts_of(*columns: tuple[int, int, int, int]) -> np.ndarray:
    """One image's: a column a threshold."""
    return np.array(columns).T[None]


def test_thresholds_are_those_of_the_benchmark() -> None:
    assert edge_thresholds().tolist() == pytest.approx([k / 100 for k in range(1, 100)])
    assert edge_thresholds(3).tolist() == pytest.approx([0.25, 0.5, 0.75])


def test_a_perfect_map_has_full_recall() -> None:
    truth = line(10)
    counts = edge_counts(truth.astype(float), [truth], num_thresholds=5)
    assert counts.tolist() == [[40] * 5] * 4
    scores = edge_scores(counts[None])
    assert (scores["ods"], scores["ois"]) == (1, 1)


def test_a_match_with_any_annotator_is_correct() -> None:
    strength = np.where(line(10), 0.9, 0) + np.where(line(20), 0.4, 0)
    people = [line(10), line(10), line(20, length=20)]
    recalled, true, right, found = edge_counts(strength, people, num_thresholds=3)
    assert true.tolist() == [100, 100, 100], "40 + 40 + 20, each person's pixels"
    assert recalled.tolist() == [100, 80, 80], "the second line is below 0.5"
    assert found.tolist() == [80, 40, 40]
    # Each true pixel has one partner: of the second line's 40 pixels 20 stay alone.
    assert right.tolist() == [60, 40, 40]


def test_predictions_are_thinned_and_matched_with_tolerance() -> None:
    diagonal = float(np.hypot(30, 60))
    thick = (line(12) | line(13) | line(14)).astype(float)
    recalled, _, right, found = edge_counts(thick, [line(13)], num_thresholds=1, max_distance=1.1 / diagonal)[:, 0]
    assert found < 45, "one line of three"
    assert right >= found - 2
    assert recalled == right
    off = line(16).astype(float)
    assert edge_counts(off, [line(13)], num_thresholds=1, max_distance=3 / diagonal)[2, 0] == 40
    assert edge_counts(off, [line(13)], num_thresholds=1, max_distance=2.9 / diagonal)[2, 0] == 0


def test_an_empty_map_has_no_predictions() -> None:
    counts = edge_counts(np.zeros((30, 60)), [line(10)], num_thresholds=4)
    assert counts.tolist() == [[0] * 4, [40] * 4, [0] * 4, [0] * 4]
    scores = edge_scores(counts[None])
    assert [scores[name] for name in ("ods", "ois", "ap", "r50")] == [0, 0, 0, 0]


def test_ods_has_one_threshold_and_ois_one_per_image() -> None:
    first = counts_of((10, 10, 10, 40), (10, 10, 10, 10))  # F 0.4, 1
    second = counts_of((10, 10, 10, 10), (1, 10, 1, 1))  # F 1, 0.1818
    scores = edge_scores(np.concatenate([first, second]))
    assert scores["ois"] == pytest.approx(1.0), "all of the counts at each image's best"
    # Together: R 1, P 0.4 and R 0.55, P 1: F 0.571, 0.710. Between them, at a share a of the second threshold, R falls by
    # 0.45 a and P rises by 0.6 a: the best F of a hundred points is at a = 67 / 99.
    a = 67 / 99
    recall, precision = 1 - 0.45 * a, 0.4 + 0.6 * a
    assert scores["ods"] == pytest.approx(2 * recall * precision / (recall + precision), abs=1e-9)
    assert scores["ods_threshold"] == pytest.approx(1 / 3 + a / 3)
    assert (scores["ods_recall"], scores["ods_precision"]) == pytest.approx((recall, precision))


def test_average_precision_goes_over_the_recalls_that_are_reached() -> None:
    # R 0.8, 0.4 and P 0.5, 1: straight between, so precision 1 - (R - 0.4) * 1.25 at 0.40, 0.41 ... 0.80.
    scores = edge_scores(counts_of((8, 10, 5, 10), (4, 10, 10, 10)))
    assert scores["ap"] == pytest.approx(sum(1 - 1.25 * (k / 100 - 0.4) for k in range(40, 81)) / 100)


def test_recall_at_half_precision_is_between() -> None:
    # P 0.4 at R 0.9, P 0.8 at R 0.5: P 0.5 a quarter of the way.
    assert edge_scores(counts_of((9, 10, 4, 10), (5, 10, 8, 10)))["r50"] == pytest.approx(0.8)
    assert edge_scores(counts_of((9, 10, 6, 10), (5, 10, 8, 10)))["r50"] == pytest.approx(0.9), "always more precise: the most"
    assert edge_scores(counts_of((9, 10, 4, 10), (5, 10, 4, 10)))["r50"] == 0, "never half precise"


def test_one_threshold_is_enough() -> None:
    scores = edge_scores(counts_of((6, 10, 3, 4)))
    assert scores["ods"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert scores["ap"] == 0, "a point is no curve"
