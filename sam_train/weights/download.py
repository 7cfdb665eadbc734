"""Download of released weights into a cache: resumed after an interruption, checked by SHA-256, one process at a time."""

from __future__ import annotations

import fcntl
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from sam_train.errors import CheckpointError
from sam_train.files import file_sha256, move_file

CACHE_VARIABLE = "SAM_TRAIN_CACHE"
"""Environment variable that names the cache folder, in place of `sam_train` in the user's cache folder."""
TIMEOUT_S = 30
"""Seconds without a byte after which a connection is given up."""
_BLOCK_BYTES = 1 << 20


def cache_folder() -> Path:
    """Return the folder of downloads: $SAM_TRAIN_CACHE/weights, else sam_train/weights in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sam_train" / "weights"


def download(url: str, path: Path, *, sha256: str, num_bytes: int, notice: str = "") -> Path:
    """Return `path`, and download it first if it does not exist. A partial download (`<name>.part`) is resumed.

    sha256, num_bytes: hash and size of the file; a file of another size or hash is never moved to `path`.
    notice: printed before a download, for a licence.

    Raises CheckpointError if the address cannot be reached or the connection breaks, with the address and the place of the
    file, and if the size or the hash differ.
    """
    if path.is_file():
        return _with_size(path, url, num_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.is_file():  # another process has downloaded it meanwhile
            return _with_size(path, url, num_bytes)
        if part.is_file() and part.stat().st_size > num_bytes:
            part.unlink()
        if not part.is_file() or part.stat().st_size < num_bytes:
            print(f"downloading {url} to {path}" + (f"\n{notice}" if notice else ""), file=sys.stderr)
            _fetch(url, part, num_bytes, path)
        _check(part, url, sha256, num_bytes)
        move_file(part, path)
    return path


def _with_size(path: Path, url: str, num_bytes: int) -> Path:
    """Return `path`. Raises CheckpointError if the file in the cache, which may have been put there by hand, is another one."""
    if (size := path.stat().st_size) != num_bytes:
        raise CheckpointError(f"{path} has {size:,} bytes, but {url} has {num_bytes:,}: remove it, it is downloaded again")
    return path


def _fetch(url: str, part: Path, num_bytes: int, path: Path) -> None:
    """Append what is missing to `part`."""
    with part.open("ab") as stream:
        start = stream.tell()
        try:
            with _opened(url, start) as response:
                if start and not _continues(response, start):  # the server sends the whole file
                    stream.truncate(0)
                    start = 0
                _copy(response, stream, start, num_bytes)
        except (OSError, HTTPException) as error:
            raise CheckpointError(
                f"{url} cannot be downloaded ({_reason(error)}): start the same command again to resume, or download it on "
                f"another machine and put it at {path}"
            ) from error
    if (size := part.stat().st_size) < num_bytes:
        raise CheckpointError(
            f"the connection to {url} ended after {size:,} of {num_bytes:,} bytes: start the same command again to resume"
        )


def _continues(response: Any, start: int) -> bool:
    return response.status == 206 and str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _opened(url: str, start: int) -> Any:
    headers = {"User-Agent": "sam-train", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - addresses of the registry
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310


def _copy(response: Any, stream: BinaryIO, start: int, num_bytes: int) -> None:
    """Copy at most the missing bytes, with progress on stderr: a bar on a terminal, else a line for each tenth."""
    done, is_terminal, last_shown = start, sys.stderr.isatty(), -1
    while done <= num_bytes and (block := response.read(_BLOCK_BYTES)):
        stream.write(block)
        done += len(block)
        percent = min(100, 100 * done // num_bytes)
        if percent // (1 if is_terminal else 10) > last_shown:
            last_shown = percent // (1 if is_terminal else 10)
            line = f"{percent:3d} % of {num_bytes / 1e6:,.0f} MB"
            print(f"\r{line}" if is_terminal else line, end="" if is_terminal and percent < 100 else "\n", file=sys.stderr)


def _check(part: Path, url: str, sha256: str, num_bytes: int) -> None:
    """Raise CheckpointError, and remove the file, if it is not the expected one."""
    size, actual = part.stat().st_size, file_sha256(part)
    if size != num_bytes or actual != sha256:
        part.unlink()
        raise CheckpointError(
            f"{url} is not the expected file: {size:,} bytes with SHA-256 {actual}, expected {num_bytes:,} bytes with {sha256}. "
            "It was removed; if a second attempt ends the same way, the file was replaced or a proxy answers for its host"
        )


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else f"{type(error).__name__}: {reason}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that the processes of one machine download a file once."""
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
