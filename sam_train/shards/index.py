"""Random access to a shard: where each sample lies in the tar, and one sample by that."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.members import Pair, Sample, Span, opened, pairs_of

_HEAD_BYTES = 4096
_IMAGE_FIRST = re.compile(rb'\s*\{\s*"image"\s*:\s*(\{[^{}]*\})')


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSample:
    """One sample of a shard, not read yet."""

    shard: Path
    key: str
    image_id: int
    place: Pair


def index_shard(shard: Path) -> list[IndexedSample]:
    """Every sample of a tar in the order of its members, from the tar's headers and the head of each JSON.

    Raises ShardError for what `pairs_of` refuses and JSON without an image id.
    """
    with opened(shard) as stream:
        return [
            IndexedSample(shard=shard, key=key, image_id=_image_id(stream, pair.json, shard, key), place=pair)
            for key, pair in pairs_of(stream, shard).items()
        ]


def read_sample(sample: IndexedSample) -> Sample:
    """The sample's JPEG bytes and record, read by position.

    Raises ShardError when what lies there is no such record: it is broken, or the tar changed since it was indexed.
    """
    with opened(sample.shard) as stream:
        jpeg, document = _read(stream, sample.place.jpeg), _read(stream, sample.place.json)
    found = Sample.parsed(sample.shard, sample.key, jpeg=jpeg, document=document)
    if found.record.image_id != sample.image_id:
        message = f"image id {found.record.image_id} where the index has {sample.image_id}: the shard changed since, start again"
        raise ShardError(message, shard=found.shard, key=sample.key, field="image.image_id")
    return found


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
