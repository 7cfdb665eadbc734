"""The images of a run as they were listed at its start, divided into slices.

The listing is the same for every process, even if the source changes later. It is read slice by slice, so the memory of a worker
does not grow with the corpus.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from data_engine.sources import ImageReferences, Source
from sam_train.errors import ConfigError
from sam_train.files import atomic_write


def write_listing(path: Path, source: Source, *, images_per_shard: int) -> None:
    """Write an Arrow file with one record batch per slice of `images_per_shard` references; the last one may be shorter."""
    assert isinstance(source.references, ImageReferences)
    table = source.references.table.combine_chunks()
    about = {"images": len(source.references), "listed": time.time(), "skipped": source.skipped, "max_pixels": source.max_pixels}
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), b"about": json.dumps(about).encode()})
    with atomic_write(path) as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata), max_chunksize=images_per_shard)


class SliceListing:
    """Reader of a file that `write_listing` wrote. Raises ConfigError if the file is not a listing."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            about = json.loads(self._file.schema.metadata[b"about"])
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is not a listing ({error}): choose another out=, or remove that file to list the source again"
            ) from error
        self.num_images: int = about["images"]
        self.listed: float = about["listed"]
        """Time of the listing, in seconds since 1970."""
        self.skipped: dict[str, str] = about["skipped"]
        """Value of `Source.skipped` at that time."""
        self._source = Source(references=(), skipped=self.skipped, max_pixels=about["max_pixels"])

    def __len__(self) -> int:
        """Return the number of slices."""
        return int(self._file.num_record_batches)

    def slice(self, index: int) -> Source:
        """Return a source with the images of slice `index` only."""
        return replace(self._source, references=ImageReferences(pa.Table.from_batches([self._file.get_batch(index)])))

    def num_images_in(self, index: int) -> int:
        """Return the number of images in slice `index`. All slices except the last have the same size."""
        return self._size if index < len(self) - 1 else self.num_images - self._size * (len(self) - 1)

    @cached_property
    def _size(self) -> int:
        return int(self._file.get_batch(0).num_rows) if len(self) else 0
