"""References to the listed images of a source, stored as columns: a million take about 100 MB instead of 1 GB."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from sam_train.shards.index import IndexedSample
from sam_train.shards.keys import check_unique, image_id_from_path, keys_from_paths
from sam_train.shards.remote import is_remote
from sam_train.shards.tar_members import ByteRange, SampleLocation

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_id", pa.int64()),
        ("name", pa.binary()),  # relative to the root, in the bytes of the file system
        ("place", pa.list_(pa.int64(), 4)),  # location in a shard: offset and length of the JPEG and of the JSON
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """Reference to one image of a source."""

    key: str
    """Key of the image in a shard; see `keys_from_paths`. A sample of a shard keeps its key."""
    image_id: int
    """Id of 48 bits, a hash of the relative path. A sample of a shard keeps its id."""
    path: Path | str
    """Path of the image file or of the shard that contains it; a string for a URL."""
    origin: str
    """Human-readable name: the path relative to the source, `shard.tar/member`, or the URL."""
    sample: IndexedSample | None = None
    """Location in the shard."""


class ImageReferences(Sequence[ImageReference]):
    """Sequence of references in a fixed order. Slicing does not copy; picklable."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.root = os.fsdecode((table.schema.metadata or {}).get(b"root", b""))

    @staticmethod
    def from_images(root: str, names: Sequence[str]) -> ImageReferences:
        """Return references to image files, by names relative to `root` (a folder or a URL) or by complete URLs.

        Raises ConfigError if two images have the same key or image id.
        """
        keys = keys_from_paths(names)
        ids = np.fromiter((image_id_from_path(name) for name in names), np.int64, len(names))
        if len(np.unique(ids)) < len(ids):
            check_unique([(int(number), printable_name(name)) for number, name in zip(ids, names, strict=True)], "image id")
        places = pa.nulls(len(names), _SCHEMA.field("place").type)
        columns = [pa.array(keys, pa.string()), pa.array(ids), _bytes(names), places]
        return ImageReferences(_table(root, columns))

    @staticmethod
    def from_samples(shards: Sequence[tuple[str, list[str], np.ndarray]]) -> ImageReferences:
        """Return references to samples of shards.

        shards: for each shard its name, its keys, and n x 5 int64: image id, offset and length of the JPEG and of the JSON.

        Raises ConfigError if two samples have the same key or image id.
        """
        keys = [key for _, shard_keys, _ in shards for key in shard_keys]
        columns = np.concatenate([numbers for *_, numbers in shards]).astype(np.int64).reshape(-1, 5)
        names = [name for name, shard_keys, _ in shards for _ in shard_keys]
        for values, what in ((keys, "key"), (columns[:, 0].tolist(), "image id")):
            if len(set(values)) < len(values):
                where = (f"{_basename(name)}/{key}.jpg" for name, key in zip(names, keys, strict=True))
                check_unique(list(zip(values, where, strict=True)), what)
        places = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(columns[:, 1:]).ravel()), 4)
        return ImageReferences(_table("", [pa.array(keys, pa.string()), pa.array(columns[:, 0]), _bytes(names), places]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[ImageReference]:
        for start in range(0, len(self), 1024):  # row-wise access would search for the chunk of every row
            yield from (self._reference(row) for row in self.table.slice(start, 1024).to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageReferences) and self.root == other.root and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> ImageReference: ...
    @overload
    def __getitem__(self, index: slice) -> ImageReferences: ...
    def __getitem__(self, index: int | slice) -> ImageReference | ImageReferences:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return ImageReferences(self.table.take(list(range(start, stop, step))))
            return ImageReferences(self.table.slice(start, max(stop - start, 0)))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._reference(self.table.slice(index % len(self), 1).to_pylist()[0])

    def _reference(self, row: dict[str, object]) -> ImageReference:
        key, image_id, name, place = str(row["key"]), row["image_id"], os.fsdecode(row["name"]), row["place"]  # type: ignore[arg-type]
        assert isinstance(image_id, int)
        where = _joined(self.root, name)
        if not isinstance(place, list):
            return ImageReference(key=key, image_id=image_id, path=where, origin=printable_name(name))
        jpeg, document = ByteRange(offset=place[0], length=place[1]), ByteRange(offset=place[2], length=place[3])
        sample = IndexedSample(shard=Path(where), key=key, image_id=image_id, location=SampleLocation(jpeg=jpeg, json=document))
        return ImageReference(key=key, image_id=image_id, path=where, origin=f"{_basename(name)}/{key}.jpg", sample=sample)


def printable_name(name: str) -> str:
    """Return the name as valid UTF-8 text for terminals and JSON, even if its bytes in the file system are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _table(root: str, columns: list[pa.Array]) -> pa.Table:
    return pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata({"root": os.fsencode(root)}))


def _bytes(names: Sequence[str]) -> pa.Array:
    return pa.array([os.fsencode(name) for name in names], pa.binary())


def _joined(root: str, name: str) -> Path | str:
    if is_remote(name):
        return name
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else Path(root, name)


def _basename(name: str) -> str:
    return name.rpartition("/")[2]
