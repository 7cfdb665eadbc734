"""Table of a shard's masks, `sa_000000.masks.parquet`, with one row per mask, for SQL queries over a folder of shards.

SELECT stage, count(*), avg(area) FROM 'folder/*.masks.parquet' GROUP BY stage

`sam-data table` merges the tables of a data set into one file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Provenance

_NO_PROVENANCE = Provenance(stage="", checkpoint="", annotator="", config="")
_INTEGERS = ("image_id", "mask_id", "width", "height", "area")
_TEXTS = ("image_key", "stage", "checkpoint", "annotator", "config", "name", "source_file")
LATER_COLUMNS = ("name", "source_file")
"""Text columns that tables of earlier versions lack."""
MASK_TABLE_COLUMNS = (
    *("image_key", "image_id", "mask_id", "width", "height", "area"),
    *("box_x", "box_y", "box_width", "box_height", "predicted_iou", "stability_score"),
    *("stage", "checkpoint", "annotator", "config", "num_prompts", "seconds", "name", "source_file"),
)
"""Columns of the table, in order.

`width` and `height` are those of the image, `area` and `box_*` those of the mask (image frame, pixels). Text is empty and
numbers are 0 for a mask without provenance, such as Meta's. `name` is the class of the masked object and `source_file` the path
of the imported image relative to its data set, both empty if unknown; tables of earlier versions lack these columns, and DuckDB
reads both kinds with `read_parquet('*.masks.parquet', union_by_name=true)`."""


def mask_table_path(shard: Path) -> Path:
    """Return the path of a shard's mask table: `folder/sa_000000.tar` -> `folder/sa_000000.masks.parquet`."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".masks.parquet")


class MaskTable:
    """Mask table that is filled record by record."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in MASK_TABLE_COLUMNS}

    def add(self, record: ImageRecord) -> None:
        """Add one row per mask of the record. Raises ShardError for ids of more than 63 bits, which Parquet cannot store."""
        if any(abs(number) >= 1 << 63 for number in (record.image_id, *(mask.id for mask in record.masks))):
            raise ShardError("an image id or mask id has more than 63 bits: renumber the images and masks", key=record.key)
        for mask in record.masks:
            for column, value in zip(self._columns.values(), _row(record, mask), strict=True):
                column.append(value)

    @staticmethod
    def schema() -> Any:
        """Return the pyarrow schema of MASK_TABLE_COLUMNS."""
        import pyarrow as pa

        types = {name: pa.int64() if name in (*_INTEGERS, "num_prompts") else pa.float64() for name in MASK_TABLE_COLUMNS}
        types |= dict.fromkeys(_TEXTS, pa.string())
        return pa.schema([(name, types[name]) for name in MASK_TABLE_COLUMNS])

    def to_arrow(self) -> Any:
        """Return the rows as a pyarrow Table."""
        import pyarrow as pa

        return pa.table(self._columns, schema=self.schema())

    def to_parquet(self) -> bytes:
        """Return the bytes of the Parquet file. Equal rows give equal bytes, with the same version of pyarrow."""
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(self.to_arrow(), stream, compression="zstd")
        return stream.getvalue()


def encode_mask_table(records: Iterable[ImageRecord]) -> bytes:
    """Return the Parquet bytes of the mask table of these records, in order."""
    table = MaskTable()
    for record in records:
        table.add(record)
    return table.to_parquet()


def _row(record: ImageRecord, mask: MaskRecord) -> tuple[Any, ...]:
    """Return the values of MASK_TABLE_COLUMNS for one mask."""
    source = mask.provenance or _NO_PROVENANCE
    return (
        *(record.key, record.image_id, mask.id, record.width, record.height, mask.area),
        *(*mask.bbox, mask.predicted_iou, mask.stability_score),
        *(source.stage, source.checkpoint, source.annotator, source.config, len(source.prompts), source.seconds, source.name),
        record.source_file,
    )
