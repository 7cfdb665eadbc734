"""A slice has one holder: of any number that want it at once, after one died, and when one slept too long."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from data_engine.slices import claims
from data_engine.slices.claims import ClaimLostError, Claims

# The children do nothing but hold files, and there are many: each with a torch of its own would take minutes.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

LONG_S, SHORT_S = 60.0, 0.8
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "claims").mkdir()
    return tmp_path / "claims"


def held_by_a_child(folder: Path, expires_s: float) -> multiprocessing.Process:
    """A process that holds "a" until it is killed."""
    ready = FORK.Event()

    def hold() -> None:
        claim = Claims(folder, expires_s).acquire("a")
        assert claim is not None
        ready.set()
        time.sleep(600)

    child = FORK.Process(target=hold, daemon=True)
    child.start()
    assert ready.wait(30)
    return child


def on_another_machine(folder: Path, name: str) -> Path:
    """What a holder elsewhere leaves: a file that names another machine."""
    path = folder / name
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1}))
    return path


def test_one_of_two(folder: Path) -> None:
    mine, theirs = Claims(folder, LONG_S), Claims(folder, LONG_S)
    claim = mine.acquire("a")
    assert claim is not None
    assert theirs.acquire("a") is None
    assert mine.acquire("a") is None, "not even this process takes what it has"
    other = theirs.acquire("b")
    assert other is not None
    other.release()
    claim.release()
    again = theirs.acquire("a")
    assert again is not None
    again.release()


def test_one_of_many_at_once(folder: Path) -> None:
    """Eight processes want forty slices, all in the same order, and none gets one twice."""
    start, answers = FORK.Event(), FORK.Queue()

    def want() -> None:
        start.wait()
        own = Claims(folder, LONG_S)
        held = {number: own.acquire(f"{number:06d}") for number in range(40)}
        answers.put([number for number, claim in held.items() if claim is not None])
        time.sleep(600)  # or it would let go

    children = [FORK.Process(target=want, daemon=True) for _ in range(8)]
    for child in children:
        child.start()
    start.set()
    taken = [number for _ in children for number in answers.get(timeout=30)]
    for child in children:
        child.kill()
        child.join()
    assert sorted(taken) == list(range(40))


def test_a_dead_holder_on_this_machine_is_followed_at_once(folder: Path) -> None:
    child = held_by_a_child(folder, LONG_S)
    own = Claims(folder, LONG_S)
    assert own.acquire("a") is None
    child.kill()
    child.join()
    claim = own.acquire("a")
    assert claim is not None
    assert sorted(path.name for path in folder.iterdir()) == ["a.0", "a.1"]
    claim.release()


def test_a_stopped_holder_is_followed_when_it_was_not_heard_of_and_notices(folder: Path) -> None:
    child = held_by_a_child(folder, SHORT_S)
    own = Claims(folder, SHORT_S)
    time.sleep(3 * SHORT_S)
    assert own.acquire("a") is None, "it lives, and touches its file"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while (claim := own.acquire("a")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    claim.release()
    child.kill()
    child.join()


def test_whoever_was_followed_may_not_write(folder: Path) -> None:
    slept = Claims(folder, LONG_S).acquire("a")
    assert slept is not None
    on_another_machine(folder, "a.1")
    with pytest.raises(ClaimLostError, match=r"a\.0 was taken over"):
        slept.confirm()
    slept.release()


def test_confirmed_is_a_generation_that_nobody_else_can_begin(folder: Path) -> None:
    claim = Claims(folder, LONG_S).acquire("a")
    assert claim is not None
    claim.confirm()
    assert Claims(folder, LONG_S).acquire("a") is None
    claim.release()
    assert sorted(path.name for path in folder.iterdir()) == ["a.0", "a.1"]


def test_a_holder_elsewhere_is_believed_while_it_is_heard_of(folder: Path) -> None:
    """By the waiting process' own clock: the times on the files may be of any year."""
    path = on_another_machine(folder, "a.0")
    own = Claims(folder, SHORT_S)
    for year in range(3):
        os.utime(path, (10**9 * year, 10**9 * year))
        assert own.acquire("a") is None
        time.sleep(0.7 * SHORT_S)
    assert own.acquire("a") is None
    time.sleep(1.2 * SHORT_S)
    claim = own.acquire("a")
    assert claim is not None
    claim.release()


def test_what_was_let_go_is_free_on_every_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claims(folder, LONG_S).acquire("a")
    assert claim is not None
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(claims, "MACHINE", "elsewhere")
        assert Claims(folder, LONG_S).acquire("a") is None
        claim.confirm()
        assert Claims(folder, LONG_S).acquire("a") is None
        claim.release()
        again = Claims(folder, LONG_S).acquire("a")
        assert again is not None
        again.release()
    assert sorted(path.name for path in folder.iterdir()) == ["a.0", "a.1", "a.2"]


def test_a_file_that_was_just_made_is_no_dead_holder(folder: Path) -> None:
    """Between its creation and its first bytes nobody can tell whose it is."""
    (folder / "a.0").touch()
    assert Claims(folder, LONG_S).acquire("a") is None


def test_without_locks_the_clock_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", no_locks)
    child = held_by_a_child(folder, SHORT_S)
    child.kill()
    child.join()
    own = Claims(folder, SHORT_S)
    assert own.acquire("a") is None
    time.sleep(1.5 * SHORT_S)
    claim = own.acquire("a")
    assert claim is not None
    claim.release()


def test_nothing_is_claimed_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    assert Claims(tmp_path / "claims", LONG_S).acquire("a") is None
    assert not (tmp_path / "claims").exists()
