"""The manifest beside a shard: a description of its content, and the mark that it is complete."""

from __future__ import annotations

import builtins
import json
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError

PLACES_COLUMNS = ("image_id", "width", "height", "num_masks", "jpeg_offset", "jpeg_bytes", "json_offset", "json_bytes")
"""Columns of `Manifest.places`: id, size (pixels) and number of masks of the image; byte ranges of its two members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content of `sa_000000.manifest.json`, which describes `sa_000000.tar`. The field names are the keys of the JSON."""

    shard: str
    """File name of the tar."""
    sha256: str
    """SHA-256 of the tar, hex."""
    bytes: int
    """Size of the tar."""
    keys: list[str]
    """Keys of the samples, in order."""
    num_masks: int
    """Number of masks of all samples."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Inputs that were skipped: name -> reason."""
    counts: dict[str, float] = field(default_factory=dict)
    """Counters of the writing process: masks dropped by each filter, clicks, seconds."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the shard: stage, checkpoint hash, config hash."""
    places: dict[str, list[int]] | None = None
    """One list per column of PLACES_COLUMNS with one integer per key; None in manifests of earlier versions."""
    source_files: list[str] | None = None
    """Path of the imported file of each key, relative to its data set, empty if unknown; None in earlier versions."""
    categories: dict[str, str] | None = None
    """Names of the imported data set's classes by their numbers in it, also of unused ones; None if it has no classes."""

    def to_json(self) -> builtins.bytes:  # `bytes` is a field here
        """Return the JSON with one key per line in the order above, so that equal manifests have equal bytes."""
        written = (f.name for f in fields(self) if f.name not in _OPTIONAL or getattr(self, f.name) is not None)
        lines = (f' "{name}": {json.dumps(getattr(self, name))}' for name in written)
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


_OPTIONAL = ("source_files", "categories")
"""Fields that are left out of the JSON if they are None."""

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
    "source_files": ((list, type(None)), str),
    "categories": ((dict, type(None)), str),
}
"""Expected type of each field, and of the values in it."""


def _has_type(value: Any, expected: Any) -> bool:
    return isinstance(value, expected) and (expected is object or not isinstance(value, bool))


def manifest_path(shard: Path) -> Path:
    """Return the path of a shard's manifest: `folder/sa_000000.tar` -> `folder/sa_000000.manifest.json`."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".manifest.json")


def load_manifest(shard: Path) -> Manifest:
    """Read the manifest of a shard. Raises ShardError if it is absent, is not JSON, or has other keys or types."""
    path = manifest_path(shard)
    if not path.is_file():
        raise ShardError(f"no manifest {path.name} beside the shard: the shard is not complete, write it again", shard=str(shard))
    return parse_manifest(path.read_bytes(), shard=str(shard))


def parse_manifest(data: bytes, *, shard: str) -> Manifest:
    """Parse a manifest; `places` and the fields after it may be absent.

    Raises ShardError, with `shard` and the field, if the data are not JSON or have other keys or types.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"manifest is not JSON: {error}", shard=shard) from error
    expected_keys = {f.name for f in fields(Manifest)}
    if not isinstance(document, dict) or set(document) | {"places", *_OPTIONAL} != expected_keys:
        raise ShardError(f"the keys of the manifest are not {sorted(expected_keys)}", shard=shard)
    for name, (expected, items) in _TYPES.items():
        value = document.get(name)
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not _has_type(value, expected) or not all(_has_type(member, items) for member in members):
            message = f"got {reprlib.repr(value)}, expected {expected}: write the shard again"
            raise ShardError(message, shard=shard, field=f"manifest.{name}")
    for name, numbers in (document.get("places") or {}).items():
        if not set(map(type, numbers)) <= {int}:
            message = f"expected integers only, got {reprlib.repr(numbers)}: write the shard again"
            raise ShardError(message, shard=shard, field=f"manifest.places.{name}")
    if len(document.get("source_files") or document["keys"]) != len(document["keys"]):
        message = "expected one source file per key: write the shard again"
        raise ShardError(message, shard=shard, field="manifest.source_files")
    return Manifest(**document)


def done_shards(folder: Path) -> list[Path]:
    """Return the shards in `folder` that have a manifest, in the order of names."""
    return [tar for tar in sorted(folder.glob("*.tar")) if manifest_path(tar).is_file()]


def read_source_files(shard: Path) -> dict[str, str]:
    """Return the imported file of each key, {} if the manifest is absent or has none. Raises ShardError if it is invalid."""
    manifest = load_manifest(shard) if manifest_path(shard).is_file() else None
    return dict(zip(manifest.keys, manifest.source_files, strict=True)) if manifest and manifest.source_files else {}


def read_categories(shards: Iterable[Path]) -> dict[int, str]:
    """Return the classes that the manifests of the shards list, by number, in the order of numbers.

    Returns {} if no manifest lists any, or if two of them disagree on the name of a number or the number of a name. Raises
    ShardError for an invalid manifest.
    """
    found: dict[int, str] = {}
    for shard in shards:
        manifest = load_manifest(shard) if manifest_path(shard).is_file() else None
        for number, name in ((manifest and manifest.categories) or {}).items():
            if not number.removeprefix("-").isdecimal():
                raise ShardError(
                    f"expected numbers of classes, got {number[:80]!r}", shard=str(shard), field="manifest.categories"
                )
            if found.setdefault(int(number), name) != name:
                return {}
    names = [name for name in found.values() if name]
    return dict(sorted(found.items())) if len(set(names)) == len(names) else {}
