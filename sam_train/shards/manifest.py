"""The manifest beside a shard: its content in numbers, and the mark that it is whole."""

from __future__ import annotations

import builtins
import json
import reprlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError

PLACES_COLUMNS = ("image_id", "width", "height", "num_masks", "jpeg_offset", "jpeg_bytes", "json_offset", "json_bytes")
"""Columns of `Manifest.places`: numbers of the picture (pixels), and where the bytes of its two members lie in the tar."""


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
    places: dict[str, list[int]] | None = None
    """One list for each of PLACES_COLUMNS, a number for each of `keys`; None in manifests of before they were written."""

    def to_json(self) -> builtins.bytes:  # `bytes` is a field here
        """JSON, a line a key in the order above (a line a number would be most of it), so equal manifests are equal bytes."""
        lines = (f' "{f.name}": {json.dumps(getattr(self, f.name))}' for f in fields(self))
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


_TYPES: dict[str, tuple[Any, Any]] = {
    "shard": (str, object),
    "sha256": (str, object),
    "bytes": (int, object),
    "keys": (list, str),
    "num_masks": (int, object),
    "skipped": (dict, str),
    "counts": (dict, (int, float)),
    "provenance": (dict, object),
    "places": ((dict, type(None)), list),
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
    return parse_manifest(path.read_bytes(), shard=str(shard))


def parse_manifest(data: bytes, *, shard: str) -> Manifest:
    """A manifest from its bytes; `places` may be absent. Raises ShardError (`shard`, field) for no JSON, other keys or types."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"manifest is not JSON: {error}", shard=shard) from error
    known = {f.name for f in fields(Manifest)}
    if not isinstance(document, dict) or set(document) | {"places"} != known:
        raise ShardError(f"manifest keys differ from {sorted(known)}", shard=shard)
    for name, (expected, items) in _TYPES.items():
        value = document.get(name)
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not _is(value, expected) or not all(_is(member, items) for member in members):
            message = f"unexpected {reprlib.repr(value)}, expected {expected}: write the shard again"
            raise ShardError(message, shard=shard, field=f"manifest.{name}")
    for name, numbers in (document.get("places") or {}).items():
        if not set(map(type, numbers)) <= {int}:
            message = f"expected whole numbers only, got {reprlib.repr(numbers)}: write the shard again"
            raise ShardError(message, shard=shard, field=f"manifest.places.{name}")
    return Manifest(**document)


def done_shards(folder: Path) -> list[Path]:
    """Shards in `folder` that have their manifest, in name order."""
    return [tar for tar in sorted(folder.glob("*.tar")) if manifest_path(tar).is_file()]
