"""Recovery of the members of a damaged tar.

The readers of `sam_train.shards` reject a truncated or corrupt tar, because training on half a shard without an error would be
worse than stopping. This reader is for the commands that report or repair damage.
"""

from __future__ import annotations

import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sam_train.records import KEY_PATTERN
from sam_train.shards.tar_members import ByteRange, open_local_shard, split_member_name

_MAGIC, _MAGIC_AT = b"ustar", 257
_PIECE = 1 << 20
MAX_DAMAGED_REGIONS = 64
"""Largest number of damaged regions per shard; its rest is ignored, because each may need a pass over all that follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarDamage:
    """A damaged region. `offset`: its first byte. `resumed_at`: byte at which the next member begins, None if none follows."""

    offset: int
    resumed_at: int | None
    message: str


@dataclass(slots=True, kw_only=True)
class TarScan:
    """The members of a tar. `spans`: key -> `jpg` or `json` -> byte ranges; a name that occurs twice has two of them."""

    spans: dict[str, dict[str, list[ByteRange]]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Key of each JPEG and JSON member, in the order of the tar."""
    damaged_regions: list[TarDamage] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Names of the members that are part of no sample."""

    def add(self, name: str, span: ByteRange) -> None:
        """Add a member: a JPEG or JSON of a sample, or one that is part of none."""
        key, extension = split_member_name(name)
        if key is not None and extension is not None:
            self.spans.setdefault(key, {}).setdefault(extension, []).append(span)
            self.order.append(key)
        else:
            self.unused.append(name)

    def complete_keys(self) -> list[str]:
        """Return the valid keys that have both members, in the order of their first member."""
        return [key for key, members in self.spans.items() if len(members) == 2 and KEY_PATTERN.fullmatch(key)]

    def non_adjacent_keys(self) -> set[str]:
        """Return the keys whose members are not adjacent, so that a reader cannot pair them in one pass."""
        earlier: set[str] = set()
        non_adjacent, last = set(), None
        for key in self.order:
            if key != last and key in earlier:
                non_adjacent.add(key)
            earlier.add(key)
            last = key
        return non_adjacent


def scan_tar(shard: Path) -> TarScan:
    """Find every JPEG and JSON in a tar: up to the first damage, and again from each next valid header on.

    Reads only headers, and the bytes between a damage and the next header. Raises ShardError if the file does not exist.
    """
    result, start = TarScan(), 0
    with open_local_shard(shard) as stream:
        num_bytes = stream.seek(0, 2)
        while True:
            end, problem = _scan_from(stream, start, num_bytes, result)
            if problem is None:
                return result
            resumed = _next_header(stream, end) if len(result.damaged_regions) < MAX_DAMAGED_REGIONS - 1 else None
            result.damaged_regions.append(TarDamage(offset=end, resumed_at=resumed, message=problem))
            if resumed is None:
                return result
            start = resumed


def read_span(stream: BinaryIO, span: ByteRange) -> bytes:
    """Return the bytes of a member of an open shard."""
    stream.seek(span.offset)
    return stream.read(span.length)


def _scan_from(stream: BinaryIO, start: int, num_bytes: int, result: TarScan) -> tuple[int, str | None]:
    """Add the members from `start` on; return where this ended, and the problem if it was not the end of the tar."""
    stream.seek(start)
    end = start
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would make tarfile read the same members again without end.
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    return end, f"a member of {member.size} bytes, which exceeds the file"
                if member.isreg() and not member.issparse():
                    result.add(member.name, ByteRange(offset=member.offset_data, length=member.size))
                end = tar.offset
    except RecursionError:  # tarfile recurses into chains of long-name headers: continue after those it has read
        return stream.tell(), "a chain of extension headers without a member"
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, struct.error) as error:
        return end, str(error) or type(error).__name__
    return _end_of(stream, end)


def _end_of(stream: BinaryIO, end: int) -> tuple[int, str | None]:
    """Check the end of a tar: at least one block of zeros after the last member, and only zeros up to the end of the file."""
    stream.seek(end)
    position, block = end, stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return end, "the end mark of the tar is missing: it is truncated"
    while block:
        if block.count(0) != len(block):
            at = position + len(block) - len(block.lstrip(b"\0"))
            return at // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE, "bytes that are not a member"
        position += len(block)
        block = stream.read(_PIECE)
    return end, None


def _next_header(stream: BinaryIO, after: int) -> int | None:
    """Return the offset of the first valid header after `after`, None if there is none. Old tars without `ustar` have none."""
    position = after
    while True:
        stream.seek(position)
        piece = stream.read(_PIECE)
        at = piece.find(_MAGIC, _MAGIC_AT)
        while at >= 0:
            block = at - _MAGIC_AT
            if block % tarfile.BLOCKSIZE == 0 and position + block > after and _is_header(piece[block : block + 512]):
                return position + block
            at = piece.find(_MAGIC, at + 1)
        if len(piece) < _PIECE:
            return None
        position += _PIECE


def _is_header(block: bytes) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return header.size >= 0
