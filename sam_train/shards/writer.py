"""Writing a shard atomically; equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sam_train.errors import ShardError
from sam_train.files import atomic_write, atomic_write_bytes, file_sha256
from sam_train.records import ImageRecord
from sam_train.shards.manifest import PLACES_COLUMNS, Manifest, manifest_path
from sam_train.shards.mask_table import MaskTable, mask_table_path
from sam_train.shards.tar_members import locate_samples, open_local_shard


def write_shard(
    path: Path,
    samples: Iterable[tuple[ImageRecord, bytes]],
    *,
    skipped: Mapping[str, str] | None = None,
    counts: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    categories: Mapping[int, str] | None = None,
) -> Manifest:
    """Write (record, JPEG bytes) pairs to `path`, then the table of their masks, then the manifest; return the manifest.

    Each write is atomic (see `sam_train.files`); the manifest comes last and marks the shard as complete. `samples` may be
    a generator: `skipped` and `counts` are read after it is exhausted, so it may fill them. `categories` are the
    names of the data set's classes by number. Raises ShardError for a duplicate
    key and for a record that does not fit its own schema; no file gets its final name then.
    """
    table = MaskTable()
    source_files: list[str] = []
    with atomic_write(path) as stream:
        sizes = _write_tar(stream, samples, table, source_files, shard=path.name)
        stream.flush()
        for outdated in (manifest_path(path), mask_table_path(path)):  # an old manifest would mark the new tar as complete
            outdated.unlink(missing_ok=True)
    atomic_write_bytes(mask_table_path(path), table.to_parquet())
    manifest = Manifest(
        shard=path.name,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        keys=list(sizes),
        num_masks=sum(num_masks for *_, num_masks in sizes.values()),
        skipped=dict(skipped or {}),
        counts=dict(counts or {}),
        provenance=dict(provenance or {}),
        places=_places_columns(path, sizes),
        source_files=source_files if any(source_files) else None,
        categories={str(number): name for number, name in categories.items()} if categories else None,
    )
    atomic_write_bytes(manifest_path(path), manifest.to_json())
    return manifest


def _write_tar(
    stream: BinaryIO, samples: Iterable[tuple[ImageRecord, bytes]], table: MaskTable, source_files: list[str], *, shard: str
) -> dict[str, tuple[int, int, int, int]]:
    """Write the tar and add its masks to `table`, the imported files to `source_files`.

    Returns image id, width, height and number of masks by key, in order.
    """
    import webdataset as wds  # imports torch

    sizes: dict[str, tuple[int, int, int, int]] = {}
    with wds.TarWriter(stream, encoder=False, mtime=0) as tar:
        for record, jpeg in samples:
            if record.key in sizes:
                raise ShardError("this key was written before: every image needs its own", shard=shard, key=record.key)
            document = record.to_json()
            ImageRecord.from_json(document, key=record.key, shard=shard)  # raises for a record that no reader would accept
            tar.write({"__key__": record.key, "jpg": jpeg, "json": document})
            sizes[record.key] = (record.image_id, record.width, record.height, len(record.masks))
            table.add(record)
            source_files.append(record.source_file)
    return sizes


def _places_columns(path: Path, sizes: Mapping[str, tuple[int, int, int, int]]) -> dict[str, list[int]]:
    """Return the columns of PLACES_COLUMNS; byte offsets are read back from the headers of the finished tar."""
    with open_local_shard(path) as stream:
        locations = locate_samples(stream, path)
    rows = [
        (*sizes[key], where.jpeg.offset, where.jpeg.length, where.json.offset, where.json.length)
        for key, where in locations.items()
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(PLACES_COLUMNS)
    return {name: list(column) for name, column in zip(PLACES_COLUMNS, columns, strict=True)}
