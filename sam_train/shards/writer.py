"""Writing a shard: whole or not at all, and the same bytes for the same input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import webdataset as wds

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.manifest import Manifest, manifest_path


def write_shard(
    path: Path,
    samples: Iterable[tuple[ImageRecord, bytes]],
    *,
    skipped: Mapping[str, str] | None = None,
    counts: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write (record, JPEG bytes) pairs to `path`, then its manifest.

    The tar is written aside, synced and renamed; the manifest follows the same way and is the mark that the
    shard is done. `samples` may be a generator: `skipped` and `counts` are read after it is exhausted, so it may
    fill them. Raises ShardError for a key written twice and for a record that its own schema refuses; on any error
    no file of the final names appears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    keys: list[str] = []
    seen: set[str] = set()
    num_masks = 0
    try:
        with aside.open("wb") as stream:
            with wds.TarWriter(stream, encoder=False, mtime=0) as tar:
                for record, jpeg in samples:
                    if record.key in seen:
                        raise ShardError("key written twice", shard=path.name, key=record.key)
                    document = record.to_json()
                    ImageRecord.from_json(document, key=record.key, shard=path.name)  # what no reader takes is not written
                    tar.write({"__key__": record.key, "jpg": jpeg, "json": document})
                    keys.append(record.key)
                    seen.add(record.key)
                    num_masks += len(record.masks)
            stream.flush()
            os.fsync(stream.fileno())
        manifest = Manifest(
            shard=path.name,
            sha256=_sha256(aside),
            bytes=aside.stat().st_size,
            keys=keys,
            num_masks=num_masks,
            skipped=dict(skipped or {}),
            counts=dict(counts or {}),
            provenance=dict(provenance or {}),
        )
        manifest_path(path).unlink(missing_ok=True)  # that of an older shard would call this one done too early
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    commit_file(manifest_path(path), manifest.to_json())
    return manifest


def commit_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all: aside, fsync, rename, and sync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
