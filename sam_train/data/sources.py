"""Where the loader's samples lie: shards by name, near and far, with a weight each; those that cannot be read left out."""

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
    """The shards that can be read, how often an epoch has the samples of each, and how they are open_local_shard."""

    indexes: tuple[ShardIndex, ...]
    weights: tuple[float, ...] | None
    """None where every shard counts once."""
    skipped_reasons: tuple[str, ...] = ()
    """Why shards were left out, one sentence each."""
    open_shard: Callable[[Path], BinaryIO] = open_local_shard

    @property
    def num_images(self) -> int:
        """In all of the shards, each once."""
        return sum(map(len, self.indexes))


def index_shards(
    names: Sequence[Path | str], *, weights: Sequence[float] | None, cache: ShardCache | None, strict: bool
) -> ShardSet:
    """Index shards: paths, and URLs through the cache.

    A shard that is torn or not what its manifest says is left out with a warning; raises its ShardError when `strict` is set
    or none is left, and ConfigError when there is no image at all, or a URL and no cache.
    """
    urls = [name for name in names if isinstance(name, str)]
    if urls and cache is None:
        raise ConfigError(f"{urls[0]} is not on this machine: give a folder to keep shards in, data.cache_dir")
    remote = dict(zip(urls, cache.index(urls) if cache is not None else [], strict=True))
    found: list[ShardIndex] = []
    kept: list[float] = []
    torn: list[ShardError] = []
    for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
        index = remote[name] if isinstance(name, str) else _indexed(name)
        if isinstance(index, ShardIndex):
            found.append(index)
            kept.append(weight)
            continue
        if strict:
            raise index
        torn.append(index)
        log.warning("a shard is left out: %s", index)
    if torn and not found:
        raise ShardError(f"none of the {len(torn)} shards can be read; the first: {torn[0]}")
    if not sum(map(len, found)):
        raise ConfigError(f"the {len(found)} shards hold no image: nothing to train on")
    if torn:
        log.warning("%d of %d shards are left out (data.strict=true would end the run)", len(torn), len(names))
    remotely = cache.open_cached_or_local if cache is not None and urls else open_local_shard
    reasons = tuple(str(error) for error in torn)
    return ShardSet(indexes=tuple(found), weights=tuple(kept) if weights else None, skipped_reasons=reasons, open_shard=remotely)


def expand_sources(sources: Sequence[Mapping[str, Any]]) -> tuple[list[Path | str], list[float]]:
    """Shards of `data.sources` and the weight of each: a list of {shards: patterns, weight: number}.

    Raises ConfigError for another form, weights that are no numbers of at least 0, none above 0, and a shard named twice.
    """
    names: list[Path | str] = []
    weights: list[float] = []
    for source in sources:
        weight = source.get("weight", 1.0) if isinstance(source, Mapping) else None
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < 1e6:
            raise ConfigError(f"a source is {source}: expected {{shards: FOLDER, weight: a number of at least 0}}")
        if not set(source) <= {"shards", "weight"} or not source.get("shards"):
            raise ConfigError(f"a source has the keys {sorted(source)}: expected shards, which names some, and weight")
        named = expand_local_and_remote(source["shards"])
        names += named
        weights += [float(weight)] * len(named)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two sources name {twice}: name it once, with the weight that it should have")
    if not any(weights):
        raise ConfigError("every source has weight 0: nothing to train on")
    return names, weights


def _indexed(shard: Path) -> ShardIndex | ShardError:
    try:
        return index_shard(shard)
    except ShardError as error:
        return error
    except OSError as error:
        return ShardError(f"cannot be read: {error}", shard=str(shard))
