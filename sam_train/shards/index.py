"""Random access to a shard: where each sample lies in the tar, and one sample by that."""

from __future__ import annotations

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
    """One sample of a shard, not read yet."""

    shard: Path
    key: str
    image_id: int
    location: SampleLocation


class ShardIndex(Sequence[IndexedSample]):
    """The samples of one tar in its order, as two arrays: a million samples are 60 MB that processes made by fork share.

    keys: n ASCII strings; columns: n x 5 int64, image id, offset and bytes of the JPEG, offset and bytes of the JSON.
    """

    def __init__(self, shard: Path, keys: np.ndarray, columns: np.ndarray) -> None:
        self.shard, self.keys, self.columns = shard, keys, columns

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[IndexedSample]:
        return (self[place] for place in range(len(self)))

    @overload
    def __getitem__(self, place: int) -> IndexedSample: ...
    @overload
    def __getitem__(self, place: slice) -> ShardIndex: ...
    def __getitem__(self, place: int | slice) -> IndexedSample | ShardIndex:
        if isinstance(place, slice):
            return ShardIndex(self.shard, self.keys[place], self.columns[place])
        image_id, *spans = self.columns[place].tolist()
        pair = SampleLocation(jpeg=ByteRange(offset=spans[0], length=spans[1]), json=ByteRange(offset=spans[2], length=spans[3]))
        return IndexedSample(shard=self.shard, key=self.keys[place].decode(), image_id=image_id, location=pair)


def index_shard(shard: Path) -> ShardIndex:
    """Every sample of a tar in the order of its members: from its manifest if that has places, else from the tar's headers
    and the head of each JSON.

    Raises ShardError for a tar whose size is not the manifest's; without places, for what `locate_samples` refuses and JSON
    without an image id.
    """
    if manifest_path(shard).is_file():
        manifest = load_manifest(shard)
        if manifest.places is not None:
            with open_local_shard(shard) as stream:
                index = index_from_manifest(shard, manifest, num_bytes=stream.seek(0, 2))
                _check_last(stream, index)
            return index
    with open_local_shard(shard) as stream:
        found = locate_samples(stream, shard)
        rows = [
            (_image_id(stream, p.json, shard, key), p.jpeg.offset, p.jpeg.length, p.json.offset, p.json.length)
            for key, p in found.items()
        ]
    return ShardIndex(shard, np.array(list(found), dtype="S"), np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS)))


def index_from_manifest(shard: Path, manifest: Manifest, *, num_bytes: int) -> ShardIndex:
    """The samples that a manifest with places names, of a tar of `num_bytes` that is not looked into.

    Raises ShardError for another size than the manifest's, names that are no keys, and places outside the tar.
    """
    assert manifest.places is not None
    if num_bytes != manifest.bytes:
        message = f"{num_bytes} bytes are not the manifest's {manifest.bytes}; {CORRUPT_TAR}"
        raise ShardError(message, shard=str(shard))
    for key in manifest.keys:
        check_key(key, shard=str(shard))
    try:
        columns = np.array([manifest.places[name] for name in _COLUMNS], dtype=np.int64).T
        columns = columns.reshape(len(manifest.keys), len(_COLUMNS))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        message = f"places are not a list of {len(manifest.keys)} numbers for each of {', '.join(_COLUMNS)}: {error}"
        raise ShardError(message, shard=str(shard), field="places") from error
    starts, lengths = columns[:, 1::2], columns[:, 2::2]
    outside = (starts < 0).any() or (lengths < 0).any() or (starts > num_bytes - lengths).any()
    if outside or len(set(manifest.keys)) < len(manifest.keys):
        raise ShardError("places outside the tar, or a key named twice: write the shard again", shard=str(shard), field="places")
    return ShardIndex(shard, np.array(manifest.keys, dtype="S"), np.ascontiguousarray(columns))


def read_sample_bytes(sample: IndexedSample, open_shard: Callable[[Path], BinaryIO] = open_local_shard) -> tuple[bytes, bytes]:
    """JPEG and JSON of a sample, read by position. Raises ShardError when the tar ends before they do, or cannot be read."""
    try:
        with open_shard(sample.shard) as stream:
            jpeg, document = _read(stream, sample.location.jpeg), _read(stream, sample.location.json)
    except OSError as error:
        raise ShardError(f"cannot be read: {error}", shard=str(sample.shard), key=sample.key) from error
    if (len(jpeg), len(document)) != (sample.location.jpeg.length, sample.location.json.length):
        raise ShardError(
            "the tar ends within this sample: it changed since it was indexed", shard=str(sample.shard), key=sample.key
        )
    return jpeg, document


def read_sample(sample: IndexedSample, open_shard: Callable[[Path], BinaryIO] = open_local_shard) -> Sample:
    """The sample's JPEG bytes and record, read by position.

    Raises ShardError when what lies there is no such record: it is broken, or the tar changed since it was indexed.
    """
    jpeg, document = read_sample_bytes(sample, open_shard)
    found = Sample.from_bytes(sample.shard, sample.key, jpeg=jpeg, document=document)
    if found.record.image_id != sample.image_id:
        message = f"image id {found.record.image_id} where the index has {sample.image_id}: the shard changed since, start again"
        raise ShardError(message, shard=found.shard, key=sample.key, field="image.image_id")
    return found


def _check_last(stream: BinaryIO, index: ShardIndex) -> None:
    """Raise ShardError unless the last JSON's header stands where the manifest says: another tar may be as long."""
    if not len(index):
        return
    last = index[len(index) - 1]
    header = _read(stream, ByteRange(offset=max(0, last.location.json.offset - tarfile.BLOCKSIZE), length=tarfile.BLOCKSIZE))
    try:
        found = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        found = None
    # A name of more than 100 bytes is cut in this header and stands whole in the one before.
    if found is None or found.size != last.location.json.length or not PurePosixPath(found.name).name.startswith(last.key[:80]):
        message = f"the members are not the manifest's: no JSON of {last.key} at byte {last.location.json.offset}, write it again"
        raise ShardError(message, shard=str(index.shard), key=last.key)


def _image_id(stream: BinaryIO, span: ByteRange, shard: Path, key: str) -> int:
    """From the head of the JSON where `image` comes first, as SA-1B and we write it; else from all of it."""
    head = _read(stream, ByteRange(offset=span.offset, length=min(span.length, _HEAD_BYTES)))
    if match := _IMAGE_FIRST.match(head):
        try:
            image_id = json.loads(match[1]).get("image_id")
        except (ValueError, RecursionError):
            image_id = None
        if type(image_id) is int and abs(image_id) < 1 << 63:
            return image_id
    image_id = ImageRecord.from_json(_read(stream, span), key=key, shard=str(shard)).image_id
    if abs(image_id) >= 1 << 63:
        raise ShardError(f"image id {image_id} has more than 63 bits", shard=str(shard), key=key, field="image.image_id")
    return image_id


def _read(stream: BinaryIO, span: ByteRange) -> bytes:
    stream.seek(span.offset)
    return stream.read(span.length)
