"""The shards of a loader: local and remote, with a weight each; shards that cannot be read are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sam_train.errors import ConfigError, ShardError
from sam_train.shards.cache import ShardCache
from sam_train.shards.index import ShardIndex, index_shard
from sam_train.shards.remote import expand_local_and_remote
from sam_train.shards.tar_members import open_local_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """The readable shards of a loader."""

    indexes: tuple[ShardIndex, ...]
    weights: tuple[float, ...] | None
    """Number of times that an epoch contains the samples of each shard; None is once for all."""
    skipped_reasons: tuple[str, ...] = ()
    """Why shards were skipped, one sentence for each."""
    open_shard: Callable[[Path], BinaryIO] = open_local_shard
    """Opens a shard for reading, through the cache if it is remote."""

    @property
    def num_images(self) -> int:
        """Number of images in all shards, without regard to weights."""
        return sum(map(len, self.indexes))


def index_shards(
    shards: Sequence[Path | str], *, weights: Sequence[float] | None, cache: ShardCache | None, strict: bool
) -> ShardSet:
    """Index local shards (paths) and remote shards (URLs, through the cache).

    A shard that is truncated, corrupt or does not match its manifest is skipped with a warning.

    Raises ShardError for such a shard if `strict` is set, or if no shard can be read; ConfigError if the shards contain no
    image, and for a URL without a cache.
    """
    urls = [shard for shard in shards if isinstance(shard, str)]
    if urls and cache is None:
        raise ConfigError(f"{urls[0]} is a remote shard: set data.cache_dir to a folder for local copies")
    remote = dict(zip(urls, cache.index(urls) if cache is not None else [], strict=True))
    indexes: list[ShardIndex] = []
    index_weights: list[float] = []
    errors: list[ShardError] = []
    for shard, weight in zip(shards, weights or [1.0] * len(shards), strict=True):
        index = remote[shard] if isinstance(shard, str) else _index_or_error(shard)
        if isinstance(index, ShardIndex):
            indexes.append(index)
            index_weights.append(weight)
            continue
        if strict:
            raise index
        errors.append(index)
        log.warning("skipped a shard: %s", index)
    if errors and not indexes:
        raise ShardError(f"none of the {len(errors)} shards can be read; the first error: {errors[0]}")
    if not sum(map(len, indexes)):
        raise ConfigError(f"the {len(indexes)} shards contain no image: there is nothing to train on")
    if errors:
        log.warning("skipped %d of %d shards (data.strict=true ends the run instead)", len(errors), len(shards))
    return ShardSet(
        indexes=tuple(indexes),
        weights=tuple(index_weights) if weights else None,
        skipped_reasons=tuple(str(error) for error in errors),
        open_shard=cache.open_cached_or_local if cache is not None and urls else open_local_shard,
    )


def expand_sources(sources: Sequence[Mapping[str, Any]]) -> tuple[list[Path | str], list[float]]:
    """Return the shards of `data.sources`, a list of {shards: patterns, weight: number}, and the weight of each shard.

    Raises ConfigError for a source of another form, a weight that is negative or not finite, if no weight is above 0, and for
    a shard that occurs twice.
    """
    shards: list[Path | str] = []
    weights: list[float] = []
    for source in sources:
        weight = source.get("weight", 1.0) if isinstance(source, Mapping) else None
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < 1e6:
            raise ConfigError(f"data.sources has {source}: expected {{shards: FOLDER, weight: a number from 0 to 1e6}}")
        if not set(source) <= {"shards", "weight"} or not source.get("shards"):
            raise ConfigError(f"a source has the keys {sorted(source)}: expected shards, which must not be empty, and weight")
        expanded = expand_local_and_remote(source["shards"])
        shards += expanded
        weights += [float(weight)] * len(expanded)
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ConfigError(f"{twice} is in two sources: give it once, with one weight")
    if not any(weights):
        raise ConfigError("every source has weight 0: there is nothing to train on")
    return shards, weights


def _index_or_error(shard: Path) -> ShardIndex | ShardError:
    try:
        return index_shard(shard)
    except ShardError as error:
        return error
    except OSError as error:
        return ShardError(f"cannot be read: {error}", shard=str(shard))
