"""The table of a shard's masks: `sa_000000.masks.parquet`, a row a mask, so that a whole folder can be asked in SQL.

SELECT stage, count(*), avg(area) FROM 'folder/*.masks.parquet' GROUP BY stage

`sam-data table` makes one file of them.
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
_TEXTS = ("image_key", "stage", "checkpoint", "annotator", "config", "name")
MASK_TABLE_COLUMNS = (
    *("image_key", "image_id", "mask_id", "width", "height", "area"),
    *("box_x", "box_y", "box_width", "box_height", "predicted_iou", "stability_score"),
    *("stage", "checkpoint", "annotator", "config", "num_prompts", "seconds", "name"),
)
"""`width` and `height` are the picture's, `area` and `box_*` the mask's (image frame, pixels); text is empty and numbers are 0
where a mask has no provenance, as Meta's have none. `name` is what the mask shows, empty where nobody said; tables of before
it was kept have no such column, and DuckDB reads both together with `read_parquet('*.masks.parquet', union_by_name=true)`."""


def mask_table_path(shard: Path) -> Path:
    """`folder/sa_000000.tar` -> `folder/sa_000000.masks.parquet`."""
    return shard.with_name(shard.name.removesuffix(".tar") + ".masks.parquet")


class MaskTable:
    """Rows of the masks of records that are added one by one."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in MASK_TABLE_COLUMNS}

    def add(self, record: ImageRecord) -> None:
        """A row for each mask of the record. Raises ShardError for ids that no reader of Parquet takes."""
        if any(abs(number) >= 1 << 63 for number in (record.image_id, *(mask.id for mask in record.masks))):
            raise ShardError("an image id or mask id of more than 63 bits: number the images and masks anew", key=record.key)
        for mask in record.masks:
            for column, value in zip(self._columns.values(), _row(record, mask), strict=True):
                column.append(value)

    @staticmethod
    def schema() -> Any:
        """pyarrow's, of MASK_TABLE_COLUMNS."""
        import pyarrow as pa

        types = {name: pa.int64() if name in (*_INTEGERS, "num_prompts") else pa.float64() for name in MASK_TABLE_COLUMNS}
        types |= dict.fromkeys(_TEXTS, pa.string())
        return pa.schema([(name, types[name]) for name in MASK_TABLE_COLUMNS])

    def to_arrow(self) -> Any:
        """The rows, a pyarrow Table."""
        import pyarrow as pa

        return pa.table(self._columns, schema=self.schema())

    def to_parquet(self) -> bytes:
        """The file's bytes: equal rows, equal bytes (with one version of pyarrow, whose name is in the file)."""
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(self.to_arrow(), stream, compression="zstd")
        return stream.getvalue()


def encode_mask_table(records: Iterable[ImageRecord]) -> bytes:
    """The Parquet bytes of the masks of these records, in their order."""
    table = MaskTable()
    for record in records:
        table.add(record)
    return table.to_parquet()


def _row(record: ImageRecord, mask: MaskRecord) -> tuple[Any, ...]:
    """In the order of MASK_TABLE_COLUMNS."""
    source = mask.provenance or _NO_PROVENANCE
    return (
        *(record.key, record.image_id, mask.id, record.width, record.height, mask.area),
        *(*mask.bbox, mask.predicted_iou, mask.stability_score),
        *(source.stage, source.checkpoint, source.annotator, source.config, len(source.prompts), source.seconds, source.name),
    )
