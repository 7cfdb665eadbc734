"""Where the members of a data set's tars lie, so that they can be read in another order than they stand in.

Nothing is extracted under a member's name. Of a gzip tar there is a copy without compression while it is in use, in a file of
no name where TMPDIR says.
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
_OPEN_AT_ONCE = 3
_BLOCK = 1 << 20
_TORN = "the tar is torn or no tar: download it again"
_MOST_TIMES_LARGER = 200
"""Pictures hardly compress, and JSON tenfold: a gzip that unpacks to more than this is made to fill a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMember:
    """A stretch of a file: a member of a tar, or a whole file that is none (`tars` None)."""

    file: Path
    name: str
    offset: int
    length: int
    tars: SourceTars | None = None

    def __str__(self) -> str:
        return str(self.file) if self.tars is None else f"{self.name} in {self.file}"

    def read(self) -> bytes:
        """Its bytes. Raises ShardError when they are more than any picture or JSON has, or fewer than there should be."""
        if self.length > MAX_MEMBER_BYTES:
            raise ShardError(f"{self} has {self.length} bytes, at most {MAX_MEMBER_BYTES} are taken")
        if self.tars is None:
            return self.file.read_bytes()
        stream = self.tars.stream(self.file)
        stream.seek(self.offset)
        data = stream.read(self.length)
        if len(data) != self.length:
            raise ShardError(f"{self} ends after {len(data)} of {self.length} bytes; {_TORN}")
        return data


def loose_file(path: Path) -> SourceMember:
    """A file that lies in no tar."""
    return SourceMember(file=path, name=path.name, offset=0, length=path.stat().st_size)


class SourceTars:
    """Open tars, a few at a time; one that was closed is opened again (and, if gzip, unpacked again) when it is wanted."""

    def __init__(self) -> None:
        self._streams: dict[Path, BinaryIO] = {}
        self._walked: Path | None = None

    def close(self) -> None:
        """Close what is open; temporary files go with it."""
        while self._streams:
            self._streams.popitem()[1].close()

    def stream(self, path: Path) -> BinaryIO:
        """The tar's bytes without compression, to seek in and read."""
        stream = self._streams.pop(path, None) or _opened(path)
        self._streams[path] = stream  # the last is the one used last
        if len(self._streams) > _OPEN_AT_ONCE:
            oldest = next(other for other in self._streams if other not in (path, self._walked))
            self._streams.pop(oldest).close()
        return stream

    def members(self, path: Path) -> Iterator[SourceMember]:
        """Every plain file of the tar, in its order; between two of them any place may be read.

        Raises ShardError for what is no tar or ends too early, and for names that lead out of a folder.
        """
        self._walked = path
        stream = self.stream(path)
        num_bytes = stream.seek(0, 2)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # A negative size would send tarfile back to where it has been, for ever.
                    if member.size < 0 or member.offset_data + member.size > num_bytes:
                        raise ShardError(f"{path}: {member.name[:200]!r} has {member.size} bytes; {_TORN}")
                    if member.isreg() and not member.issparse():
                        name = checked_relative_path(member.name, place=str(path))
                        yield SourceMember(file=path, name=name, offset=member.offset_data, length=member.size, tars=self)
                end = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError, struct.error) as error:
            raise ShardError(f"{path}: {error}; {_TORN}") from error
        # tarfile takes a broken header, and a file that stops between two members, for the end of the archive.
        stream.seek(end)
        if (block := stream.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            raise ShardError(f"{path}: {'no end mark' if not block else 'no member'} at byte {end}; {_TORN}")


def _opened(path: Path) -> BinaryIO:
    stream = path.open("rb")
    if stream.read(2) != b"\x1f\x8b":
        stream.seek(0)
        return stream
    stream.close()
    return _unpacked(path)


def _unpacked(path: Path) -> BinaryIO:
    limit = _MOST_TIMES_LARGER * path.stat().st_size + _BLOCK
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (Tars closes it)
    try:
        with gzip.open(path) as packed:
            while block := packed.read(_BLOCK):
                copy.write(block)
                if copy.tell() > limit:
                    raise ShardError(f"{path} unpacks to more than {_MOST_TIMES_LARGER} times its size: no tar of pictures does")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        copy.close()
        raise ShardError(f"{path}: {error}; {_TORN}") from error
    except BaseException:
        copy.close()
        raise
    return copy
