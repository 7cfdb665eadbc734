"""Random access to a shard: an index of the byte ranges of its samples, and reading of single samples."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, overload

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, check_key
from sam_train.shards.manifest import Manifest, load_manifest, manifest_path
from sam_train.shards.tar_members import CORRUPT_TAR, ByteRange, Sample, SampleLocation, locate_samples, open_local_shard

_HEAD_BYTES = 4096
_IMAGE_FIRST = re.compile(rb'\s*\{\s*"image"\s*:\s*(\{[^{}]*\})')
_COLUMNS = ("image_id", "jpeg_offset", "jpeg_bytes", "json_offset", "json_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSample:
    """One sample of a shard that has not been read yet."""

    shard: Path
    key: str
    image_id: int
    location: SampleLocation


class ShardIndex(Sequence[IndexedSample]):
    """The samples of one tar in its order, as two arrays: a million samples take 60 MB, which forked processes share.

    keys: n ASCII strings; columns: n x 5 int64, image id, offset and bytes of the JPEG, offset and bytes of the JSON.
    sha256: SHA-256 of the tar from its manifest; None without a manifest.
    """

    def __init__(self, shard: Path, keys: np.ndarray, columns: np.ndarray, sha256: str | None = None) -> None:
        self.shard, self.keys, self.columns, self.sha256 = shard, keys, columns, sha256

    @property
    def content_hash(self) -> str:
        """SHA-256 of the tar as its manifest states it; without a manifest, that of its keys, image ids and byte ranges."""
        return self.sha256 or hashlib.sha256(b"\0".join(self.keys.tolist()) + self.columns.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[IndexedSample]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> IndexedSample: ...
    @overload
    def __getitem__(self, index: slice) -> ShardIndex: ...
    def __getitem__(self, index: int | slice) -> IndexedSample | ShardIndex:
        if isinstance(index, slice):
            return ShardIndex(self.shard, self.keys[index], self.columns[index])
        image_id, *numbers = self.columns[index].tolist()
        jpeg = ByteRange(offset=numbers[0], length=numbers[1])
        document = ByteRange(offset=numbers[2], length=numbers[3])
        location = SampleLocation(jpeg=jpeg, json=document)
        return IndexedSample(shard=self.shard, key=self.keys[index].decode(), image_id=image_id, location=location)


def index_shard(shard: Path) -> ShardIndex:
    """Index every sample of a tar in the order of its members.

    The index comes from the manifest if that has `places`, else from the tar's headers and the head of each JSON.

    Raises ShardError for a tar whose size is not the manifest's; without `places`, also for everything that `locate_samples`
    rejects and for JSON without an image id.
    """
    sha256 = None
    if manifest_path(shard).is_file():
        manifest = load_manifest(shard)
        sha256 = manifest.sha256
        if manifest.places is not None:
            with open_local_shard(shard) as stream:
                index = index_from_manifest(shard, manifest, num_bytes=stream.seek(0, 2))
                _check_last_sample(stream, index)
            return index
    with open_local_shard(shard) as stream:
        locations = locate_samples(stream, shard)
        rows = [
            (_image_id(stream, w.json, shard, key), w.jpeg.offset, w.jpeg.length, w.json.offset, w.json.length)
            for key, w in locations.items()
        ]
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS))
    return ShardIndex(shard, np.array(list(locations), dtype="S"), columns, sha256)


def index_from_manifest(shard: Path, manifest: Manifest, *, num_bytes: int) -> ShardIndex:
    """Index a tar of `num_bytes` from a manifest with `places`, without reading the tar.

    Raises ShardError for a size other than the manifest's, invalid or duplicate keys, and byte ranges outside the tar.
    """
    assert manifest.places is not None
    if num_bytes != manifest.bytes:
        message = f"the tar has {num_bytes} bytes, its manifest lists {manifest.bytes}; {CORRUPT_TAR}"
        raise ShardError(message, shard=str(shard))
    for key in manifest.keys:
        check_key(key, shard=str(shard))
    try:
        columns = np.array([manifest.places[name] for name in _COLUMNS], dtype=np.int64).T
        columns = columns.reshape(len(manifest.keys), len(_COLUMNS))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        message = f"expected places to be a list of {len(manifest.keys)} numbers for each of {', '.join(_COLUMNS)}: {error}"
        raise ShardError(message, shard=str(shard), field="places") from error
    starts, lengths = columns[:, 1::2], columns[:, 2::2]
    outside = (starts < 0).any() or (lengths < 0).any() or (starts > num_bytes - lengths).any()
    if outside or len(set(manifest.keys)) < len(manifest.keys):
        raise ShardError(
            "byte ranges outside the tar, or a duplicate key: write the shard again", shard=str(shard), field="places"
        )
    return ShardIndex(shard, np.array(manifest.keys, dtype="S"), np.ascontiguousarray(columns), manifest.sha256)


def read_sample_bytes(sample: IndexedSample, open_shard: Callable[[Path], BinaryIO] = open_local_shard) -> tuple[bytes, bytes]:
    """Read the JPEG and the JSON of a sample. Raises ShardError if the tar ends before them or cannot be read."""
    try:
        with open_shard(sample.shard) as stream:
            jpeg, document = _read(stream, sample.location.jpeg), _read(stream, sample.location.json)
    except OSError as error:
        raise ShardError(f"cannot be read: {error}", shard=str(sample.shard), key=sample.key) from error
    if (len(jpeg), len(document)) != (sample.location.jpeg.length, sample.location.json.length):
        raise ShardError(
            "the tar ends within this sample: it has changed since it was indexed", shard=str(sample.shard), key=sample.key
        )
    return jpeg, document


def read_sample(sample: IndexedSample, open_shard: Callable[[Path], BinaryIO] = open_local_shard) -> Sample:
    """Read one sample at the byte ranges of its index entry.

    Raises ShardError if the record there is not valid or is not the indexed one: the tar is corrupt, or has changed since it
    was indexed.
    """
    jpeg, document = read_sample_bytes(sample, open_shard)
    loaded = Sample.from_bytes(sample.shard, sample.key, jpeg=jpeg, document=document)
    if loaded.record.image_id != sample.image_id:
        message = f"the image id is {loaded.record.image_id}, in the index it is {sample.image_id}"
        message += ": the shard has changed since it was indexed, start again"
        raise ShardError(message, shard=loaded.shard, key=sample.key, field="image.image_id")
    return loaded


def _check_last_sample(stream: BinaryIO, index: ShardIndex) -> None:
    """Raise ShardError unless the last JSON's header is where the manifest says: another tar may have the same size."""
    if not len(index):
        return
    last = index[len(index) - 1]
    header = _read(stream, ByteRange(offset=max(0, last.location.json.offset - tarfile.BLOCKSIZE), length=tarfile.BLOCKSIZE))
    try:
        member = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        member = None
    # A name of more than 100 bytes is truncated in this header; the complete name is in the header before.
    if (
        member is None
        or member.size != last.location.json.length
        or not PurePosixPath(member.name).name.startswith(last.key[:80])
    ):
        message = f"the members are not those of the manifest: no JSON of {last.key} at byte {last.location.json.offset}"
        raise ShardError(f"{message}; write the shard again", shard=str(index.shard), key=last.key)


def _image_id(stream: BinaryIO, byte_range: ByteRange, shard: Path, key: str) -> int:
    """Return the image id from the head of the JSON if `image` comes first, as in SA-1B and our shards, else from all of it."""
    head = _read(stream, ByteRange(offset=byte_range.offset, length=min(byte_range.length, _HEAD_BYTES)))
    if match := _IMAGE_FIRST.match(head):
        try:
            image_id = json.loads(match[1]).get("image_id")
        except (ValueError, RecursionError):
            image_id = None
        if type(image_id) is int and abs(image_id) < 1 << 63:
            return image_id
    image_id = ImageRecord.from_json(_read(stream, byte_range), key=key, shard=str(shard)).image_id
    if abs(image_id) >= 1 << 63:
        raise ShardError(f"image id {image_id} has more than 63 bits", shard=str(shard), key=key, field="image.image_id")
    return image_id


def _read(stream: BinaryIO, byte_range: ByteRange) -> bytes:
    stream.seek(byte_range.offset)
    return stream.read(byte_range.length)
