"""Members of a shard's tar: their names, byte ranges and checks, for random access (`index`) and for one pass (`reader`).

No member is ever extracted, and only the last component of a member's path is used, so that no name in a tar can point
outside a folder.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, check_key
from sam_train.shards.manifest import load_manifest, manifest_path

CORRUPT_TAR = "the file is truncated, corrupt or not a tar: write or download it again"
"""End of the messages about a tar that cannot be read completely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a shard: the JPEG bytes as stored, the record parsed."""

    shard: str
    jpeg: bytes
    record: ImageRecord

    @staticmethod
    def from_bytes(shard: Path, key: str, *, jpeg: bytes, document: bytes) -> Sample:
        """Return the sample of a JPEG and a JSON member. Raises ShardError if the JSON does not fit the schema of records."""
        return Sample(shard=str(shard), jpeg=jpeg, record=ImageRecord.from_json(document, key=key, shard=str(shard)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """Contiguous part of a file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLocation:
    """Byte ranges of the two members of a sample in the tar."""

    jpeg: ByteRange
    json: ByteRange


def split_member_name(path: str) -> tuple[str, str] | tuple[None, None]:
    """Return key and lower-case extension of a member: `./folder/KEY.JPG` -> (KEY, jpg).

    Returns (None, None) for a member that belongs to no sample: another extension, or a dot in the key.
    """
    name = PurePosixPath(path).name
    key, _, extension = name.partition(".")
    return (key, extension.lower()) if key and extension.lower() in ("jpg", "json") else (None, None)


def locate_samples(stream: BinaryIO, shard: Path) -> dict[str, SampleLocation]:
    """Return the location of every sample of the tar by its key, in the order of their first members. Reads headers only.

    Members that are not `KEY.jpg` or `KEY.json` (folders, links, licences, names that begin with a dot) are ignored.
    Raises ShardError for a truncated or corrupt tar, bytes after its end, a size or keys other than those of the manifest
    (if there is one beside the tar), a name that is not a valid key, a duplicate name, and a JPEG without JSON or a JSON
    without JPEG.
    """
    samples: dict[str, dict[str, ByteRange]] = {}
    for key, extension, byte_range in _members(stream, shard):
        check_key(key, shard=str(shard))
        if extension in samples.setdefault(key, {}):
            raise ShardError("two members have this name", shard=str(shard), key=key, field=extension)
        samples[key][extension] = byte_range
    for key, byte_ranges in samples.items():
        if len(byte_ranges) != 2:
            raise ShardError(
                f"expected {key}.jpg and {key}.json, found only {key}.{next(iter(byte_ranges))}", shard=str(shard), key=key
            )
    _check_manifest(shard, list(samples))
    return {key: SampleLocation(jpeg=byte_ranges["jpg"], json=byte_ranges["json"]) for key, byte_ranges in samples.items()}


def _members(stream: BinaryIO, shard: Path) -> Iterator[tuple[str, str, ByteRange]]:
    """Yield key, extension and byte range of each JPEG and JSON."""
    num_bytes = shard.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would move tarfile back to an earlier member, in an endless loop.
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    raise ShardError(f"a member of {member.size} bytes; {CORRUPT_TAR}", shard=str(shard))
                key, extension = split_member_name(member.name)
                if key is not None and extension is not None and member.isreg() and not member.issparse():
                    yield key, extension, ByteRange(offset=member.offset_data, length=member.size)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, struct.error) as error:
        # RecursionError: tarfile recurses once per header in a chain of long names.
        raise ShardError(f"{error}; {CORRUPT_TAR}", shard=str(shard)) from error
    _check_end(stream, end, shard)


def _check_end(stream: BinaryIO, end: int, shard: Path) -> None:
    # tarfile treats a corrupt header as the end of the archive, and would silently drop every member after it.
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ShardError(f"no end mark at byte {end}; {CORRUPT_TAR}", shard=str(shard))
    while block:
        if block.count(0) != len(block):
            raise ShardError(f"no valid member header at byte {end}; {CORRUPT_TAR}", shard=str(shard))
        block = stream.read(1 << 20)


def _check_manifest(shard: Path, keys: list[str]) -> None:
    if not manifest_path(shard).is_file():  # Meta's own tars have no manifest
        return
    manifest = load_manifest(shard)
    if manifest.bytes != shard.stat().st_size or manifest.keys != keys:
        message = f"the tar has {shard.stat().st_size} bytes and {len(keys)} samples, its manifest lists {manifest.bytes} and"
        raise ShardError(f"{message} {len(manifest.keys)} (or their keys differ): write the shard again", shard=str(shard))


def open_local_shard(shard: Path) -> BinaryIO:
    """Open a shard for reading. Raises ShardError if the file does not exist."""
    if not shard.is_file():
        raise ShardError("no such shard: name a .tar that exists", shard=str(shard))
    return shard.open("rb")
