"""Writing a shard: whole or not at all, and the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds

from sam_train.errors import ShardError
from sam_train.files import commit_file, file_sha256, written_whole
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

    Each is whole or not there (see `sam_train.files`); the manifest comes last and is the mark that the shard is done.
    `samples` may be a generator: `skipped` and `counts` are read after it is exhausted, so it may fill them. Raises
    ShardError for a key written twice and for a record that its own schema refuses; then no file of the final names appears.
    """
    with written_whole(path) as stream:
        keys, num_masks = _write_tar(stream, samples, shard=path.name)
        stream.flush()
        manifest_path(path).unlink(missing_ok=True)  # that of an older shard would call this one done too early
    manifest = Manifest(
        shard=path.name,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        keys=keys,
        num_masks=num_masks,
        skipped=dict(skipped or {}),
        counts=dict(counts or {}),
        provenance=dict(provenance or {}),
    )
    commit_file(manifest_path(path), manifest.to_json())
    return manifest


def _write_tar(stream: BinaryIO, samples: Iterable[tuple[ImageRecord, bytes]], *, shard: str) -> tuple[list[str], int]:
    """The keys in order and the number of masks."""
    keys: dict[str, None] = {}
    num_masks = 0
    with wds.TarWriter(stream, encoder=False, mtime=0) as tar:
        for record, jpeg in samples:
            if record.key in keys:
                raise ShardError("key written twice", shard=shard, key=record.key)
            document = record.to_json()
            ImageRecord.from_json(document, key=record.key, shard=shard)  # what no reader takes is not written
            tar.write({"__key__": record.key, "jpg": jpeg, "json": document})
            keys[record.key] = None
            num_masks += len(record.masks)
    return list(keys), num_masks
