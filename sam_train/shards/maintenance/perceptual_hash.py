"""The fingerprints of all pictures of shards, with the place of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards.maintenance.duplicate_groups import fingerprint
from sam_train.shards.maintenance.parallel import Advance, map_shards
from sam_train.shards.maintenance.tar_recovery import read_span, scan_tar
from sam_train.shards.tar_members import open_local_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLocation:
    """Where a picture lies."""

    shard: Path
    key: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageHashes:
    """Fingerprints (uint64 of shape (4,)) and places of N pictures, and the places of those that do not decode."""

    fingerprints: list[np.ndarray]
    places: list[ImageLocation]
    unreadable: list[ImageLocation]


def hash_images(shards: Sequence[Path], *, workers: int) -> ImageHashes:
    """Of every picture of every shard, in order. Raises ShardError for a shard that is damaged, ConfigError as `map_shards`."""
    whole = ImageHashes(fingerprints=[], places=[], unreadable=[])
    for _, part in map_shards(hash_shard_images, shards, workers=workers, what="fingerprints"):
        whole.fingerprints.extend(part.fingerprints)
        whole.places.extend(part.places)
        whole.unreadable.extend(part.unreadable)
    return whole


def hash_shard_images(shard: Path, advance: Advance) -> ImageHashes:
    """Of one shard. Raises ShardError when it is damaged."""
    scanned, found, position = scan_tar(shard), ImageHashes(fingerprints=[], places=[], unreadable=[]), 0
    if scanned.damaged_regions or len(scanned.complete_keys()) != len(scanned.spans):
        raise ShardError(
            "the shard is damaged: see sam-data validate, and take what sam-data repair makes of it", shard=str(shard)
        )
    with open_local_shard(shard) as stream:
        for key, spans in scanned.spans.items():
            place, span = ImageLocation(shard=shard, key=key), spans["jpg"][-1]
            try:
                found.fingerprints.append(fingerprint(read_span(stream, span), shard=str(shard), key=key))
                found.places.append(place)
            except SkipSampleError:
                found.unreadable.append(place)
            advance(max(span.offset + span.length - position, 0))
            position = max(span.offset + span.length, position)
    advance(shard.stat().st_size - position)
    return found
