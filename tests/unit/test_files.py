"""File writes are atomic, and stale temporary files of killed processes are removed."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sam_train.files import atomic_write, atomic_write_bytes, file_sha256


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stale_temporary(path: Path, host: str = "") -> Path:
    """Create a temporary file as a dead process leaves it."""
    return path.with_name(f".{path.name}.{host or socket.gethostname()}.4711.0a1b2c3d.tmp")


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.bin"
    with atomic_write(path) as stream:
        stream.write(b"one")
        stream.flush()
        assert not path.exists()
        (aside,) = path.parent.iterdir()
        assert aside.name.startswith(".a.bin.")
        assert aside.name.endswith(".tmp")
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"one")

    def fail() -> None:
        with atomic_write(path) as stream:
            stream.write(b"two")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a.bin"]


def test_a_file_that_fails_to_sync_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"one")

    def no_space(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a.bin"]


def test_file_and_folder_are_synced_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, bool]] = []
    path = tmp_path / "a.bin"

    def note(descriptor: int) -> None:
        synced.append((os.path.isdir(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    atomic_write_bytes(path, b"one")
    assert synced == [(False, False), (True, True)]


def test_next_write_removes_a_dead_process_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a[1].bin"
    of_this_file = stale_temporary(path)
    others = [stale_temporary(tmp_path / "b.bin"), stale_temporary(path, host="another-machine"), tmp_path / "a[1].bin.tmp"]
    for aside in (of_this_file, *others):
        aside.write_bytes(b"half")
    atomic_write_bytes(path, b"whole")
    assert names(tmp_path) == sorted([path.name, *(aside.name for aside in others)])


def test_keeps_the_temporary_of_a_live_writer(tmp_path: Path) -> None:
    """Two containers of one machine may well write the same file; the one that ends last wins."""
    path = tmp_path / "a.bin"
    with atomic_write(path) as slow:
        slow.write(b"slow")
        atomic_write_bytes(path, b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == ["a.bin"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from sam_train.files import atomic_write
        with atomic_write(Path(sys.argv[1])) as stream:
            print("writing", flush=True)
            time.sleep(60)
    """
    path = tmp_path / "a.bin"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        atomic_write_bytes(path, b"one")
        assert len(names(tmp_path)) == 2, "it lives, so its aside stays"
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 2
    atomic_write_bytes(path, b"two")
    assert names(tmp_path) == ["a.bin"]


def test_retries_if_its_temporary_is_removed_before_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["first", "second"])

    def token(_: int) -> str:
        return next(tokens)

    def flock(stream: object, how: int) -> None:
        for aside in tmp_path.glob("*.first.tmp"):  # the other writer comes here
            aside.unlink()

    monkeypatch.setattr("sam_train.files.token_hex", token)
    monkeypatch.setattr("fcntl.flock", flock)
    atomic_write_bytes(tmp_path / "a.bin", b"one")
    assert next(tokens, None) is None, "it began again"
    assert names(tmp_path) == ["a.bin"]


def test_writes_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(stream: object, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    left = stale_temporary(tmp_path / "a.bin")
    left.write_bytes(b"half")
    atomic_write_bytes(tmp_path / "a.bin", b"one")
    assert names(tmp_path) == [left.name, "a.bin"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(i % 251 for i in range(min(size, 4096))) * (size // 4096) + b"x" * (size % 4096))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
