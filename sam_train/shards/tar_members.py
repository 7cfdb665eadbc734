"""What the members of a shard's tar must be, for both ways of reading one: by place (`index`) and in one pass (`reader`).

Nothing is ever extracted, and of a member's path only the last part is looked at, so no name in a tar can point anywhere.
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

CORRUPT_TAR = "the tar is torn or no tar: write or download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as it lies in a shard: JPEG bytes undecoded, record parsed."""

    shard: str
    jpeg: bytes
    record: ImageRecord

    @staticmethod
    def from_bytes(shard: Path, key: str, *, jpeg: bytes, document: bytes) -> Sample:
        """From the bytes of the pair's two members. Raises ShardError for JSON that the schema does not know."""
        return Sample(shard=str(shard), jpeg=jpeg, record=ImageRecord.from_json(document, key=key, shard=str(shard)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A stretch of a file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLocation:
    """Where the two members of a sample lie in the tar."""

    jpeg: ByteRange
    json: ByteRange


def split_member_name(path: str) -> tuple[str, str] | tuple[None, None]:
    """`./folder/KEY.JPG` -> (KEY, jpg); (None, None) for what is no part of a sample: other endings, dots in the key."""
    name = PurePosixPath(path).name
    key, _, extension = name.partition(".")
    return (key, extension.lower()) if key and extension.lower() in ("jpg", "json") else (None, None)


def locate_samples(stream: BinaryIO, shard: Path) -> dict[str, SampleLocation]:
    """Every sample of the tar by its key, in the order in which they begin. Only headers are read.

    Members that are not `KEY.jpg` or `KEY.json` (folders, links, licences, names that begin with a dot) are not samples.
    Raises ShardError for a torn tar, bytes after its end, a size or keys other than its manifest's (where one lies beside
    it), a name that can be no key, a name given twice, and a JPEG without JSON or the reverse.
    """
    found: dict[str, dict[str, ByteRange]] = {}
    for key, extension, span in _members(stream, shard):
        check_key(key, shard=str(shard))
        if extension in found.setdefault(key, {}):
            raise ShardError("two members have this name", shard=str(shard), key=key, field=extension)
        found[key][extension] = span
    for key, spans in found.items():
        if len(spans) != 2:
            raise ShardError(
                f"expected {key}.jpg and {key}.json, found only {key}.{next(iter(spans))}", shard=str(shard), key=key
            )
    _check_manifest(shard, list(found))
    return {key: SampleLocation(jpeg=spans["jpg"], json=spans["json"]) for key, spans in found.items()}


def _members(stream: BinaryIO, shard: Path) -> Iterator[tuple[str, str, ByteRange]]:
    """Key, extension and place of each JPEG and JSON."""
    num_bytes = shard.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would send tarfile back to where it has been, for ever.
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    raise ShardError(f"a member of {member.size} bytes; {CORRUPT_TAR}", shard=str(shard))
                key, extension = split_member_name(member.name)
                if key is not None and extension is not None and member.isreg() and not member.issparse():
                    yield key, extension, ByteRange(offset=member.offset_data, length=member.size)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, struct.error) as error:
        # A chain of a thousand long names takes tarfile as deep.
        raise ShardError(f"{error}; {CORRUPT_TAR}", shard=str(shard)) from error
    _check_end(stream, end, shard)


def _check_end(stream: BinaryIO, end: int, shard: Path) -> None:
    # tarfile takes a broken header for the end of the archive, and would lose all that follows without a word.
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ShardError(f"no end mark at byte {end}; {CORRUPT_TAR}", shard=str(shard))
    while block:
        if block.count(0) != len(block):
            raise ShardError(f"something that is no member at byte {end}; {CORRUPT_TAR}", shard=str(shard))
        block = stream.read(1 << 20)


def _check_manifest(shard: Path, keys: list[str]) -> None:
    if not manifest_path(shard).is_file():  # Meta's own tars have none
        return
    manifest = load_manifest(shard)
    if manifest.bytes != shard.stat().st_size or manifest.keys != keys:
        message = f"{shard.stat().st_size} bytes and {len(keys)} samples are not the manifest's {manifest.bytes} and"
        raise ShardError(f"{message} {len(manifest.keys)} (or their keys differ): write the shard again", shard=str(shard))


def open_local_shard(shard: Path) -> BinaryIO:
    """The shard's bytes. Raises ShardError when there is no such file."""
    if not shard.is_file():
        raise ShardError("no such shard: name a .tar that exists", shard=str(shard))
    return shard.open("rb")
