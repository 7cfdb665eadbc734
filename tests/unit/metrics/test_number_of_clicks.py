"""The first click that is good enough."""

from __future__ import annotations

import numpy as np
import pytest

from sam_train.metrics.number_of_clicks import number_of_clicks


def test_the_first_click_that_reaches_it_counts() -> None:
    ious = [[0.5, 0.85, 0.8, 0.95], [0.9], [0.1, 0.2, 0.3, 0.4]]
    assert number_of_clicks(ious, 0.85, 20) == ((2 + 1 + 20) / 3, 1)
    assert number_of_clicks(ious, 0.9, 4) == ((4 + 1 + 4) / 3, 1), "reached at the last click is not never"
    assert number_of_clicks(ious, 0.0, 20) == (1.0, 0)


def test_no_masks_need_no_clicks() -> None:
    assert number_of_clicks([], 0.9, 20) == (0, 0)


def test_as_numpy_would_have_it() -> None:
    """`compute_noc_metric` of RITM, on lists that go on to the end."""
    ious = np.random.default_rng(0).random((50, 20)) ** 0.2
    for threshold in (0.8, 0.85, 0.9, 0.99):
        reached = ious >= threshold
        expected = np.where(reached.any(1), reached.argmax(1) + 1, 20).mean()
        assert number_of_clicks(ious.tolist(), threshold, 20) == (pytest.approx(expected), (~reached.any(1)).sum())
