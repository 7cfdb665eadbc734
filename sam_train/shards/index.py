"""Random access to a shard: where each sample lies in the tar, and one sample by that.

Nothing is ever extracted, and of a member's path only the last part is looked at, so no name in a tar can point anywhere.
"""

from __future__ import annotations

import json
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, check_key
from sam_train.shards.manifest import load_manifest, manifest_path
from sam_train.shards.reader import Sample

_HEAD_BYTES = 4096
_IMAGE_FIRST = re.compile(rb'\s*\{\s*"image"\s*:\s*(\{[^{}]*\})')
_TORN = "the tar is torn or no tar: write or download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSample:
    """One sample of a shard, not read yet."""

    shard: Path
    key: str
    image_id: int
    jpeg: Span
    json: Span


def index_shard(shard: Path) -> list[IndexedSample]:
    """Every sample of a tar in the order of its members, from the tar's headers and the head of each JSON.

    Members that are not `KEY.jpg` or `KEY.json` (folders, links, licences, names that begin with a dot) are not samples.
    Raises ShardError for a torn tar, bytes after its end, a size or keys other than its manifest's (where one lies beside
    it), a name that can be no key, a name given twice, a JPEG without JSON or the reverse, and JSON without an image id.
    """
    if not shard.is_file():
        raise ShardError("no such shard: name a .tar that exists", shard=str(shard))
    spans: dict[str, dict[str, Span]] = {}
    with shard.open("rb") as stream:
        for name, span in _members(stream, shard):
            key, _, extension = name.partition(".")
            check_key(key, shard=str(shard))
            if extension.lower() in spans.setdefault(key, {}):
                raise ShardError("two members have this name", shard=str(shard), key=key, field=extension)
            spans[key][extension.lower()] = span
        samples = [_indexed(stream, shard, key, found) for key, found in spans.items()]
    _check_manifest(shard, [sample.key for sample in samples])
    return samples


def read_sample(sample: IndexedSample) -> Sample:
    """The sample's JPEG bytes and record, read by position.

    Raises ShardError when what lies there is no such record: it is broken, or the tar changed since it was indexed.
    """
    with sample.shard.open("rb") as stream:
        jpeg, document = _read(stream, sample.jpeg), _read(stream, sample.json)
    record = ImageRecord.from_json(document, key=sample.key, shard=str(sample.shard))
    if record.image_id != sample.image_id:
        message = f"image id {record.image_id} where the index has {sample.image_id}: the shard changed since, start again"
        raise ShardError(message, shard=str(sample.shard), key=sample.key, field="image.image_id")
    return Sample(shard=str(sample.shard), jpeg=jpeg, record=record)


def _members(stream: BinaryIO, shard: Path) -> Iterator[tuple[str, Span]]:
    """Base name and place of each JPEG and JSON."""
    num_bytes = shard.stat().st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would send tarfile back to where it has been, for ever.
                if member.size < 0 or member.offset_data + member.size > num_bytes:
                    raise ShardError(f"a member of {member.size} bytes; {_TORN}", shard=str(shard))
                name = PurePosixPath(member.name).name
                is_sample = name.lower().endswith((".jpg", ".json")) and name.count(".") == 1 and not name.startswith(".")
                if is_sample and member.isreg() and not member.issparse():
                    yield name, Span(offset=member.offset_data, length=member.size)
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise ShardError(f"{error}; {_TORN}", shard=str(shard)) from error
    _check_end(stream, end, shard)


def _check_end(stream: BinaryIO, end: int, shard: Path) -> None:
    # tarfile takes a broken header for the end of the archive, and would lose all that follows without a word.
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ShardError(f"no end mark at byte {end}; {_TORN}", shard=str(shard))
    while block:
        if block.count(0) != len(block):
            raise ShardError(f"something that is no member at byte {end}; {_TORN}", shard=str(shard))
        block = stream.read(1 << 20)


def _indexed(stream: BinaryIO, shard: Path, key: str, found: dict[str, Span]) -> IndexedSample:
    if len(found) != 2:
        raise ShardError(f"expected {key}.jpg and {key}.json, found only {sorted(found)}", shard=str(shard), key=key)
    return IndexedSample(
        shard=shard, key=key, image_id=_image_id(stream, found["json"], shard, key), jpeg=found["jpg"], json=found["json"]
    )


def _image_id(stream: BinaryIO, span: Span, shard: Path, key: str) -> int:
    """From the head of the JSON where `image` comes first, as SA-1B and we write it; else from all of it."""
    head = _read(stream, Span(offset=span.offset, length=min(span.length, _HEAD_BYTES)))
    if match := _IMAGE_FIRST.match(head):
        try:
            image_id = json.loads(match[1]).get("image_id")
        except (ValueError, RecursionError):
            image_id = None
        if type(image_id) is int:
            return image_id
    return ImageRecord.from_json(_read(stream, span), key=key, shard=str(shard)).image_id


def _read(stream: BinaryIO, span: Span) -> bytes:
    stream.seek(span.offset)
    return stream.read(span.length)


def _check_manifest(shard: Path, keys: list[str]) -> None:
    if not manifest_path(shard).is_file():  # Meta's own tars have none
        return
    manifest = load_manifest(shard)
    if manifest.bytes != shard.stat().st_size or manifest.keys != keys:
        message = f"{shard.stat().st_size} bytes and {len(keys)} samples are not the manifest's {manifest.bytes} and"
        raise ShardError(f"{message} {len(manifest.keys)} (or their keys differ): write the shard again", shard=str(shard))
