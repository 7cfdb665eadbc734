"""Random access to the members of a data set's tars.

No file is extracted under a member's name. While a gzip tar is in use, an uncompressed copy is kept in an unnamed temporary file
(TMPDIR).
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sam_train.errors import ShardError
from sam_train.shards.importers.file_pairing import checked_relative_path

MAX_MEMBER_BYTES = 1 << 30
_MAX_OPEN = 3
_BLOCK = 1 << 20
_CORRUPT = "the file is truncated, corrupt or not a tar: download it again"
_MAX_COMPRESSION = 200
"""Largest ratio of a gzip tar's content to its size. Images hardly compress and JSON tenfold: a larger ratio is an attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMember:
    """A member of a tar, or a single file outside of tars (`tars` is None)."""

    file: Path
    """The tar, or the single file."""
    name: str
    """Path within the tar, or that of the file relative to the data set."""
    offset: int
    length: int
    tars: SourceTars | None = None

    @staticmethod
    def from_file(path: Path, folder: Path) -> SourceMember:
        """Return the entry of a file outside of tars; its name is relative to `folder`."""
        return SourceMember(file=path, name=path.relative_to(folder).as_posix(), offset=0, length=path.stat().st_size)

    def exists(self) -> bool:
        """Return True: members are found in their tar."""
        return True

    def __str__(self) -> str:
        return str(self.file) if self.tars is None else f"{self.name} in {self.file}"

    def read(self) -> bytes:
        """Read the bytes. Raises ShardError if there are more than MAX_MEMBER_BYTES, or fewer than the tar declares."""
        if self.length > MAX_MEMBER_BYTES:
            raise ShardError(f"{self} has {self.length} bytes, at most {MAX_MEMBER_BYTES} are accepted")
        if self.tars is None:
            return self.file.read_bytes()
        stream = self.tars.stream(self.file)
        stream.seek(self.offset)
        data = stream.read(self.length)
        if len(data) != self.length:
            raise ShardError(f"{self} ends after {len(data)} of {self.length} bytes; {_CORRUPT}")
        return data


class SourceTars:
    """Pool of a few open tars. A tar that was closed is opened again (and, if gzip, decompressed again) on demand."""

    def __init__(self) -> None:
        self._streams: dict[Path, BinaryIO] = {}
        self._current: Path | None = None

    def close(self) -> None:
        """Close all streams, which also removes temporary files."""
        while self._streams:
            self._streams.popitem()[1].close()

    def stream(self, path: Path) -> BinaryIO:
        """Return a seekable stream of the uncompressed tar."""
        stream = self._streams.pop(path, None) or _open_uncompressed(path)
        self._streams[path] = stream  # the last entry is the most recently used
        if len(self._streams) > _MAX_OPEN:
            oldest = next(other for other in self._streams if other not in (path, self._current))
            self._streams.pop(oldest).close()
        return stream

    def members(self, path: Path) -> Iterator[SourceMember]:
        """Yield every regular file of the tar in order. Any member may be read while the iteration is in progress.

        Raises ShardError for a truncated or corrupt tar and for names that lead out of a folder.
        """
        self._current = path
        stream = self.stream(path)
        num_bytes = stream.seek(0, 2)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # A negative size would move tarfile back to an earlier member, in an endless loop.
                    if member.size < 0 or member.offset_data + member.size > num_bytes:
                        raise ShardError(f"{path}: {member.name[:200]!r} has {member.size} bytes; {_CORRUPT}")
                    if member.isreg() and not member.issparse():
                        name = checked_relative_path(member.name, place=str(path))
                        yield SourceMember(file=path, name=name, offset=member.offset_data, length=member.size, tars=self)
                end = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError, struct.error) as error:
            raise ShardError(f"{path}: {error}; {_CORRUPT}") from error
        # tarfile treats a corrupt header, and a file truncated between two members, as the end of the archive.
        stream.seek(end)
        if (block := stream.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            problem = "no valid member header" if block else "no end mark"
            raise ShardError(f"{path}: {problem} at byte {end}; {_CORRUPT}")


def _open_uncompressed(path: Path) -> BinaryIO:
    stream = path.open("rb")
    if stream.read(2) != b"\x1f\x8b":
        stream.seek(0)
        return stream
    stream.close()
    return _decompress(path)


def _decompress(path: Path) -> BinaryIO:
    limit = _MAX_COMPRESSION * path.stat().st_size + _BLOCK
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (SourceTars closes it)
    try:
        with gzip.open(path) as compressed:
            while block := compressed.read(_BLOCK):
                copy.write(block)
                if copy.tell() > limit:
                    message = f"{path} decompresses to more than {_MAX_COMPRESSION} times its size"
                    raise ShardError(f"{message}, which no tar of images does: download it again")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        copy.close()
        raise ShardError(f"{path}: {error}; {_CORRUPT}") from error
    except BaseException:
        copy.close()
        raise
    return copy
