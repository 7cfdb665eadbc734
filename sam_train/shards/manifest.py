"""The manifest beside a shard: its content in numbers, and the mark that it is whole."""

from __future__ import annotations

import builtins
import json
import reprlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `sa_000000.manifest.json` says of `sa_000000.tar`."""

    shard: str
    """File name of the tar."""
    sha256: str
    bytes: int
    keys: list[str]
    """Keys of the samples, in order."""
    num_masks: int
    skipped: dict[str, str] = field(default_factory=dict)
    """Inputs of this shard that are not in it: name -> reason."""
    counts: dict[str, float] = field(default_factory=dict)
    """What the maker counted: masks dropped by filter, clicks, seconds."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What made the shard: stage, checkpoint hash, config hash."""

    def to_json(self) -> builtins.bytes:  # `bytes` is a field here
        """JSON, keys in the order above, so equal manifests are equal bytes."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


_TYPES: dict[str, tuple[type, Any]] = {
    "shard": (str, object),
    "sha256": (str, object),
    "bytes": (int, object),
    "keys": (list, str),
    "num_masks": (int, object),
    "skipped": (dict, str),
    "counts": (dict, (int, float)),
    "provenance": (dict, object),
}
"""Of each field, and of what is in it."""


def _is(value: Any, expected: Any) -> bool:
    return isinstance(value, expected) and (expected is object or not isinstance(value, bool))


def manifest_path(shard: Path) -> Path:
    """`folder/sa_000000.tar` -> `folder/sa_000000.manifest.json`."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".manifest.json")


def load_manifest(shard: Path) -> Manifest:
    """The manifest of a shard. Raises ShardError (field) when it is absent, no JSON, or has other keys or types."""
    path = manifest_path(shard)
    if not path.is_file():
        raise ShardError(f"no manifest {path.name} beside the shard: it was not finished, write it again", shard=str(shard))
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShardError(f"manifest is not JSON: {error}", shard=str(shard)) from error
    known = {f.name for f in fields(Manifest)}
    if not isinstance(document, dict) or set(document) != known:
        raise ShardError(f"manifest keys differ from {sorted(known)}", shard=str(shard))
    for name, (expected, items) in _TYPES.items():
        value = document[name]
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not _is(value, expected) or not all(_is(member, items) for member in members):
            message = f"unexpected {reprlib.repr(value)}, expected a {expected.__name__}: write the shard again"
            raise ShardError(message, shard=str(shard), field=f"manifest.{name}")
    return Manifest(**document)


def done_shards(folder: Path) -> list[Path]:
    """Shards in `folder` that have their manifest, in name order."""
    return [tar for tar in sorted(folder.glob("*.tar")) if manifest_path(tar).is_file()]
