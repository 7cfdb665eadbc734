"""`sam-data table SHARDS... --out masks.parquet`: one Parquet table of all masks of a data set, for DuckDB, polars or pandas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_train.errors import ShardError
from sam_train.files import atomic_write
from sam_train.shards.maintenance.parallel import Advance, add_workers, map_shards
from sam_train.shards.mask_table import LATER_COLUMNS, MaskTable, mask_table_path
from sam_train.shards.reader import expand_shards, iterate_samples

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_EXAMPLE = "duckdb -c \"SELECT name, count(*), avg(area) FROM 'masks.parquet' GROUP BY name ORDER BY 2 DESC\""


def add_table(commands: Commands) -> None:
    """Add the command `table` and its options."""
    about = "Write one Parquet table of all masks: ids, areas, boxes, scores, class names, provenance and shard."
    more = f"One row per mask, in the order of the shards and of the masks in them. Example: {_EXAMPLE}"
    parser = commands.add_parser("table", help=about, description=about, epilog=more)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders (recursive)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table; an existing one is replaced")
    add_workers(parser)
    parser.set_defaults(run=run_table)


def run_table(arguments: argparse.Namespace) -> None:
    """Write the table for the parsed options. Raises ConfigError if no shard matches, ShardError for an invalid shard."""
    shards = expand_shards(arguments.shards, recursive=True)
    num_masks = write_table(arguments.out, shards, workers=arguments.workers)
    print(f"{arguments.out}: {num_masks} masks of {len(shards)} shards")


def write_table(out: Path, shards: list[Path], *, workers: int = 1) -> int:
    """Write the rows of all shards, with one shard at a time in memory; return their number.

    The rows come from the table beside a shard, or from its records if there is none. The column `shard`, before
    `MASK_TABLE_COLUMNS`, is the path of the tar as it was given. Raises ShardError for a shard that cannot be read; `out` is
    unchanged in that case.
    """
    from pyarrow import parquet

    num_masks = 0
    with atomic_write(out) as stream, parquet.ParquetWriter(stream, _schema(), compression="zstd") as writer:
        for _, rows in map_shards(read_mask_rows, shards, workers=workers, what="reading"):
            writer.write_table(rows)
            num_masks += rows.num_rows
    return num_masks


def read_mask_rows(shard: Path, advance: Advance) -> Any:
    """Return the masks of a shard as a pyarrow Table."""
    import pyarrow as pa

    rows = _read_table_beside(shard) if mask_table_path(shard).is_file() else _read_records(shard)
    advance(shard.stat().st_size)
    named = rows.add_column(0, "shard", pa.array([str(shard)] * rows.num_rows, pa.string()))
    return named.cast(_schema())


def _read_table_beside(shard: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    path, schema = mask_table_path(shard), MaskTable.schema()
    try:
        rows = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path.name} cannot be read: {error}; sam-data repair writes it again", shard=str(shard)) from error
    for name in set(schema.names) - set(rows.column_names) - {*LATER_COLUMNS}:
        raise ShardError(f"{path.name} has no column {name!r}; sam-data repair writes it again", shard=str(shard))
    for name in LATER_COLUMNS:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.array([""] * rows.num_rows, pa.string()))
    return rows.select(schema.names)


def _read_records(shard: Path) -> Any:
    table = MaskTable()
    for sample in iterate_samples([shard]):
        table.add(sample.record)
    return table.to_arrow()


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("shard", pa.string()), *MaskTable.schema()])
