"""A slice has one holder: with concurrent processes, after a process died, and after one was suspended for too long."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from sam_train import claims
from sam_train.claims import ClaimLostError, Claims

# Fork, because there are many children that only hold files: importing torch in each would take minutes.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

LONG_S, SHORT_S = 60.0, 0.8
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "claims").mkdir()
    return tmp_path / "claims"


def hold_in_child_process(folder: Path, expires_s: float) -> multiprocessing.Process:
    """Start a process that holds the claim "a" until it is killed."""
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


def write_foreign_claim(folder: Path, name: str) -> Path:
    """Write a claim file of another machine."""
    path = folder / name
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1}))
    return path


def test_only_one_of_two_processes_acquires_a_claim(folder: Path) -> None:
    first, second = Claims(folder, LONG_S), Claims(folder, LONG_S)
    claim = first.acquire("a")
    assert claim is not None
    assert second.acquire("a") is None
    assert first.acquire("a") is None, "a process cannot acquire its waiting claim again"
    other = second.acquire("b")
    assert other is not None
    other.release()
    claim.release()
    again = second.acquire("a")
    assert again is not None
    again.release()


def test_concurrent_processes_acquire_each_claim_once(folder: Path) -> None:
    """Eight processes try to acquire forty claims in the same order; each claim is acquired once."""
    start, results = FORK.Event(), FORK.Queue()

    def acquire_all() -> None:
        start.wait()
        waiting = Claims(folder, LONG_S)
        held = {number: waiting.acquire(f"{number:06d}") for number in range(40)}
        results.put([number for number, claim in held.items() if claim is not None])
        time.sleep(600)  # otherwise the claims would be released

    children = [FORK.Process(target=acquire_all, daemon=True) for _ in range(8)]
    for child in children:
        child.start()
    start.set()
    taken = [number for _ in children for number in results.get(timeout=30)]
    for child in children:
        child.kill()
        child.join()
    assert sorted(taken) == list(range(40))


def test_claim_of_a_dead_local_process_is_free_immediately(folder: Path) -> None:
    child = hold_in_child_process(folder, LONG_S)
    waiting = Claims(folder, LONG_S)
    assert waiting.acquire("a") is None
    child.kill()
    child.join()
    claim = waiting.acquire("a")
    assert claim is not None
    assert sorted(path.name for path in folder.iterdir()) == ["a.0", "a.1"]
    claim.release()


def test_claim_of_a_suspended_process_expires(folder: Path) -> None:
    child = hold_in_child_process(folder, SHORT_S)
    waiting = Claims(folder, SHORT_S)
    time.sleep(3 * SHORT_S)
    assert waiting.acquire("a") is None, "the holder is alive and sends heartbeats"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while (claim := waiting.acquire("a")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    claim.release()
    child.kill()
    child.join()


def test_confirm_fails_after_another_process_took_over(folder: Path) -> None:
    suspended = Claims(folder, LONG_S).acquire("a")
    assert suspended is not None
    write_foreign_claim(folder, "a.1")
    with pytest.raises(ClaimLostError, match=r"a\.0 was taken over"):
        suspended.confirm()
    suspended.release()


def test_confirmed_claim_cannot_be_taken_over(folder: Path) -> None:
    claim = Claims(folder, LONG_S).acquire("a")
    assert claim is not None
    claim.confirm()
    assert Claims(folder, LONG_S).acquire("a") is None
    claim.release()
    assert sorted(path.name for path in folder.iterdir()) == ["a.0", "a.1"]


def test_remote_claim_expires_only_without_heartbeat(folder: Path) -> None:
    """The expiry is measured on the clock of the waiting process, so the modification times may be of any year."""
    path = write_foreign_claim(folder, "a.0")
    waiting = Claims(folder, SHORT_S)
    for year in range(3):
        os.utime(path, (10**9 * year, 10**9 * year))
        assert waiting.acquire("a") is None
        time.sleep(0.7 * SHORT_S)
    assert waiting.acquire("a") is None
    time.sleep(1.2 * SHORT_S)
    claim = waiting.acquire("a")
    assert claim is not None
    claim.release()


def test_released_claim_is_free_on_every_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_empty_claim_file_is_not_expired(folder: Path) -> None:
    """Between the creation of the file and its first bytes the holder is unknown."""
    (folder / "a.0").touch()
    assert Claims(folder, LONG_S).acquire("a") is None


def test_without_file_locks_claims_expire_by_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims.fcntl, "flock", no_locks)
    child = hold_in_child_process(folder, SHORT_S)
    child.kill()
    child.join()
    waiting = Claims(folder, SHORT_S)
    assert waiting.acquire("a") is None
    time.sleep(1.5 * SHORT_S)
    claim = waiting.acquire("a")
    assert claim is not None
    claim.release()


def test_acquire_returns_none_if_the_folder_was_removed(tmp_path: Path) -> None:
    assert Claims(tmp_path / "claims", LONG_S).acquire("a") is None
    assert not (tmp_path / "claims").exists()
