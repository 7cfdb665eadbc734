"""Atomic file writes, and the SHA-256 of files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary stream whose content replaces `path` atomically when the block ends.

    The stream writes a temporary file in the same folder, which is created if it does not exist. At the end of the block the
    file is synced and renamed to `path`, and the folder is synced. On any error the temporary file is removed and `path`
    stays unchanged. Raises OSError if opening, writing or renaming fails.

    A killed process leaves its temporary file behind. The next process that writes `path` on the same machine removes it,
    unless a live writer holds the file's lock. Temporary files carry the host name because locks do not reach over every
    network file system, and a random part because process ids of two containers may be equal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_temporaries(path)
    temporary, stream = _open_locked_temporary(path)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)  # before closing the stream releases the lock
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, see `atomic_write`."""
    with atomic_write(path) as stream:
        stream.write(data)


def move_file(source: Path, path: Path) -> None:
    """Move a finished file to `path` on the same disk, atomically: it is synced, renamed, and the folder is synced."""
    with source.open("r+b") as stream:
        os.fsync(stream.fileno())
    source.replace(path)
    _sync_folder(path.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits, reading it in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open_locked_temporary(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{token_hex(4)}.tmp")
        stream = temporary.open("xb")
        with suppress(OSError):  # on a file system without locks, stale files are not removed either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, stream
        stream.close()  # another writer of `path` considered the file stale and removed it before it was locked


def _remove_stale_temporaries(path: Path) -> None:
    for stale in path.parent.glob(f".{escape(path.name)}.{escape(socket.gethostname())}.*.tmp"):
        with suppress(OSError), stale.open("r+b") as stream:  # in use, already removed, or owned by another user
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
