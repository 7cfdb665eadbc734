"""The pictures of a source that were listed and not read yet, as columns: a million of them are some 100 MB and not 1 GB."""

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
        ("name", pa.binary()),  # relative to the root, in the file system's own bytes
        ("place", pa.list_(pa.int64(), 4)),  # in a shard: offset and length of the JPEG, of the JSON
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """One picture of a source, not read yet."""

    key: str
    """Name in a shard; see `keys_from_paths`. A shard's sample keeps its own."""
    image_id: int
    """Of 48 bits, from the relative path. A shard's sample keeps its own."""
    path: Path | str
    """The picture, or the shard that holds it; text for a URL."""
    origin: str
    """For people: the path relative to the source, `shard.tar/member`, or the URL."""
    sample: IndexedSample | None = None
    """Where in the shard."""


class ImageReferences(Sequence[ImageReference]):
    """References in a fixed order. A part of them costs nothing; picklable."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.root = os.fsdecode((table.schema.metadata or {}).get(b"root", b""))

    @staticmethod
    def from_images(root: str, names: Sequence[str]) -> ImageReferences:
        """Pictures by their names relative to `root` (a folder or a URL), or by URLs of their own.

        Raises ConfigError when two have one key or one image id.
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
        """Samples of shards: for each its name, the keys, and n x 5 int64 (image id, offset and length of JPEG and JSON).

        Raises ConfigError when two have one key or one image id.
        """
        keys = [key for _, found, _ in shards for key in found]
        columns = np.concatenate([numbers for *_, numbers in shards]).astype(np.int64).reshape(-1, 5)
        names = [name for name, found, _ in shards for _ in found]
        for values, what in ((keys, "key"), (columns[:, 0].tolist(), "image id")):
            if len(set(values)) < len(values):
                where = (f"{_basename(name)}/{key}.jpg" for name, key in zip(names, keys, strict=True))
                check_unique(list(zip(values, where, strict=True)), what)
        places = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(columns[:, 1:]).ravel()), 4)
        return ImageReferences(_table("", [pa.array(keys, pa.string()), pa.array(columns[:, 0]), _bytes(names), places]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[ImageReference]:
        for start in range(0, len(self), 1024):  # a row at a time would look for its chunk each time
            yield from (self._reference(row) for row in self.table.slice(start, 1024).to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageReferences) and self.root == other.root and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, place: int) -> ImageReference: ...
    @overload
    def __getitem__(self, place: slice) -> ImageReferences: ...
    def __getitem__(self, place: int | slice) -> ImageReference | ImageReferences:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                return ImageReferences(self.table.take(list(range(start, stop, step))))
            return ImageReferences(self.table.slice(start, max(stop - start, 0)))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._reference(self.table.slice(place % len(self), 1).to_pylist()[0])

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
    """The name as text that any terminal and JSON takes, also where the file system's bytes are no UTF-8."""
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
