"""Perceptual hashes of all images of shards, with the location of each image."""

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
    """Shard and key of an image."""

    shard: Path
    key: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageHashes:
    """Fingerprints (uint64 of shape (4,)) and locations of N images, and the locations of images that do not decode."""

    fingerprints: list[np.ndarray]
    locations: list[ImageLocation]
    unreadable: list[ImageLocation]


def hash_images(shards: Sequence[Path], *, workers: int) -> ImageHashes:
    """Hash every image of every shard, in order. Raises ShardError for a damaged shard, and ConfigError as `map_shards`."""
    hashes = ImageHashes(fingerprints=[], locations=[], unreadable=[])
    for _, part in map_shards(hash_shard_images, shards, workers=workers, what="hashing"):
        hashes.fingerprints.extend(part.fingerprints)
        hashes.locations.extend(part.locations)
        hashes.unreadable.extend(part.unreadable)
    return hashes


def hash_shard_images(shard: Path, advance: Advance) -> ImageHashes:
    """Hash every image of one shard. Raises ShardError if it is damaged."""
    scanned, found, position = scan_tar(shard), ImageHashes(fingerprints=[], locations=[], unreadable=[]), 0
    if scanned.damaged_regions or len(scanned.complete_keys()) != len(scanned.spans):
        raise ShardError(
            "the shard is damaged: run sam-data validate, and use the shard that sam-data repair writes", shard=str(shard)
        )
    with open_local_shard(shard) as stream:
        for key, spans in scanned.spans.items():
            location, span = ImageLocation(shard=shard, key=key), spans["jpg"][-1]
            try:
                found.fingerprints.append(fingerprint(read_span(stream, span), shard=str(shard), key=key))
                found.locations.append(location)
            except SkipSampleError:
                found.unreadable.append(location)
            advance(max(span.offset + span.length - position, 0))
            position = max(span.offset + span.length, position)
    advance(shard.stat().st_size - position)
    return found
