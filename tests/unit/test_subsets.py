"""Evenly spaced indices and shares "I/N" of a sequence."""

from __future__ import annotations

import pytest

from sam_train.errors import ConfigError
from sam_train.subsets import evenly_spaced_indices, parse_slice


def test_evenly_spaced_indices() -> None:
    assert evenly_spaced_indices(10, 3) == [1, 5, 8]
    assert evenly_spaced_indices(10, 3, at="start") == [0, 3, 6]
    assert evenly_spaced_indices(10, 4, at="ends") == [0, 3, 6, 9]
    assert evenly_spaced_indices(3, 5) == evenly_spaced_indices(3, 3, at="ends") == [0, 1, 2]
    assert evenly_spaced_indices(0, 5) == []


def test_slices_of_all_shares_are_a_partition() -> None:
    parts = [range(10)[parse_slice(f"{index}/3")] for index in range(3)]
    assert [list(part) for part in parts] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("text", ["3", "3/3", "-1/2", "a/b", "0/0", None])
def test_rejects_invalid_slices(text: object) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        parse_slice(text)
