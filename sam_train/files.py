"""Files that are whole or not there, and their SHA-256."""

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
    """A stream whose content becomes `path` when the block ends, whole or not at all.

    It is written aside in the same folder (made if need be), synced and renamed, and the folder is synced; on any error the
    aside goes and `path` stays as it was. Raises OSError as opening, writing and renaming do.

    A killed process leaves its aside. The next one that writes `path` on the same machine removes it, if nobody holds the
    lock that a living writer has on its aside. Asides carry the machine's name because locks do not reach over every network
    file system, and a random part because process ids of two containers may be equal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    aside, stream = _locked_aside(path)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            aside.replace(path)  # before the lock goes with the stream
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """`atomic_write` for bytes that are already there."""
    with atomic_write(path) as stream:
        stream.write(data)


def file_sha256(path: Path) -> str:
    """SHA-256 of the file, hex, read by the piece."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _locked_aside(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{token_hex(4)}.tmp")
        stream = aside.open("xb")
        with suppress(OSError):  # a file system without locks: nobody removes leftovers there
            fcntl.flock(stream, fcntl.LOCK_EX)
        if aside.exists():
            return aside, stream
        stream.close()  # another writer of `path` took it for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{escape(path.name)}.{escape(socket.gethostname())}.*.tmp"):
        with suppress(OSError), leftover.open("r+b") as stream:  # in use, gone meanwhile, or not ours to touch
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
