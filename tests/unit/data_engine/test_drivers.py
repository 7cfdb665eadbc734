"""The local driver does every slice once, in order, to its end, and stops at the first error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from data_engine.drivers import run_slices


def test_every_slice_once_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def work(slice_: str) -> Iterator[str]:
        for letter in slice_:
            done.append(letter)
            yield letter
        done.append("|")

    run_slices(["ab", "", "c"], work, num_images=3, description="letters")
    assert "".join(done) == "ab||c|"
    assert "letters" in capsys.readouterr().out


def test_nothing_to_do() -> None:
    run_slices([], lambda _: pytest.fail("there is no slice"), num_images=0, description="nothing")


def test_first_error_ends_it() -> None:
    started: list[int] = []

    def work(slice_: int) -> Iterator[int]:
        started.append(slice_)
        yield slice_
        if slice_ == 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_slices([1, 2, 3], work, num_images=3, description="numbers")
    assert started == [1, 2]
