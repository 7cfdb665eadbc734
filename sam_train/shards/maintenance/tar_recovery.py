"""The members of a tar, past damage.

`sam_train.shards` refuses a torn tar, because training on half a shard without a word is worse than stopping. Here is the other
reader, for the commands that say what is wrong with a shard or save what is left of it.
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
"""A shard with more damaged places is given up at the last of them: each may cost a pass over what follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TarDamage:
    """A place where the tar is no tar. `offset`: byte. `resumed_at`: byte where members go on, None where nothing follows."""

    offset: int
    resumed_at: int | None
    message: str


@dataclass(slots=True, kw_only=True)
class TarScan:
    """What a tar holds. `spans`: key -> jpg and json -> where they lie; a name that comes twice has two places."""

    spans: dict[str, dict[str, list[ByteRange]]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Key of each JPEG and JSON, in the order of the members."""
    damaged_regions: list[TarDamage] = field(default_factory=list)

    def add(self, name: str, span: ByteRange) -> None:
        """Take a member in, unless its name is none of a sample's."""
        key, extension = split_member_name(name)
        if key is not None and extension is not None:
            self.spans.setdefault(key, {}).setdefault(extension, []).append(span)
            self.order.append(key)

    def complete_keys(self) -> list[str]:
        """Keys that can be keys and have both members, in the order in which they begin."""
        return [key for key, places in self.spans.items() if len(places) == 2 and KEY_PATTERN.fullmatch(key)]

    def non_adjacent_keys(self) -> set[str]:
        """Keys whose members do not follow each other, so that no reader in one pass can pair them."""
        seen: set[str] = set()
        non_adjacent_keys, last = set(), None
        for key in self.order:
            if key != last and key in seen:
                non_adjacent_keys.add(key)
            seen.add(key)
            last = key
        return non_adjacent_keys


def scan_tar(shard: Path) -> TarScan:
    """Every JPEG and JSON that a tar still holds: up to the first damage, and from the next whole header on.

    Only headers are read, and what lies between a damage and the next header. Raises ShardError when there is no such file.
    """
    found, start = TarScan(), 0
    with open_local_shard(shard) as stream:
        num_bytes = stream.seek(0, 2)
        while True:
            end, problem = _stretch(stream, start, num_bytes, found)
            if problem is None:
                return found
            resumed = _next_header(stream, end) if len(found.damaged_regions) < MAX_DAMAGED_REGIONS - 1 else None
            found.damaged_regions.append(TarDamage(offset=end, resumed_at=resumed, message=problem))
            if resumed is None:
                return found
            start = resumed


def read_span(stream: BinaryIO, span: ByteRange) -> bytes:
    """The bytes at a place of an open shard."""
    stream.seek(span.offset)
    return stream.read(span.length)


def _stretch(stream: BinaryIO, start: int, num_bytes: int, found: TarScan) -> tuple[int, str | None]:
    """Take in the members from `start` on; where that ended, and why if it was not the tar's end."""
    stream.seek(start)
    end = start
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would send tarfile back to where it has been, for ever.
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    return end, f"a member of {member.size} bytes, which do not follow"
                if member.isreg() and not member.issparse():
                    found.add(member.name, ByteRange(offset=member.offset_data, length=member.size))
                end = tar.offset
    except RecursionError:  # tarfile follows long names of long names into the depth: go on behind those that it has read
        return stream.tell(), "a chain of extension headers without a member"
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, struct.error) as error:
        return end, str(error) or type(error).__name__
    return _end_of(stream, end)


def _end_of(stream: BinaryIO, end: int) -> tuple[int, str | None]:
    """Past a tar's last member: at least one block of zeros, and nothing else up to the file's end."""
    stream.seek(end)
    position, block = end, stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return end, "the tar's end mark is missing: it was cut"
    while block:
        if block.count(0) != len(block):
            at = position + len(block) - len(block.lstrip(b"\0"))
            return at // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE, "something that is no member"
        position += len(block)
        block = stream.read(_PIECE)
    return end, None


def _next_header(stream: BinaryIO, after: int) -> int | None:
    """The first block behind `after` that is a whole header. Old tars without a magic word have none to be found."""
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
