"""`sam-data table SHARDS... --out masks.parquet`: all masks of a set in one file, to be asked by DuckDB, polars or pandas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_train.errors import ShardError
from sam_train.files import atomic_write
from sam_train.shards.maintenance.parallel import Advance, add_workers, map_shards
from sam_train.shards.mask_table import MaskTable, mask_table_path
from sam_train.shards.reader import expand_shards, iterate_samples

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

_ASK = "duckdb -c \"SELECT name, count(*), avg(area) FROM 'masks.parquet' GROUP BY name ORDER BY 2 DESC\""


def add_table(commands: Commands) -> None:
    """The command and its options."""
    about = "write one Parquet of all masks: ids, areas, boxes, scores, names, where each comes from, and its shard"
    more = (
        f"A row a mask, in the order of shards and of masks in them; a picture without masks has none. Then, for instance: {_ASK}"
    )
    parser = commands.add_parser("table", help=about, description=about, epilog=more)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table; one that is there is replaced")
    add_workers(parser)
    parser.set_defaults(run=run_table)


def run_table(arguments: argparse.Namespace) -> None:
    """Write the table that the parsed command asks for. Raises ConfigError, ShardError."""
    shards = expand_shards(arguments.shards)
    num_masks = write_table(arguments.out, shards, workers=arguments.workers)
    print(f"{arguments.out}: {num_masks} masks of {len(shards)} shards")


def write_table(out: Path, shards: list[Path], *, workers: int = 1) -> int:
    """Write the rows of all shards, one shard after the other in memory; how many they are.

    A shard's own table is taken where it lies beside it, else the rows are made of its records. The column `shard`, before
    `MASK_TABLE_COLUMNS`, is the tar as it was named. Raises ShardError for a shard that
    cannot be read; then `out` stays as it was.
    """
    from pyarrow import parquet

    num_masks = 0
    with atomic_write(out) as stream, parquet.ParquetWriter(stream, _schema(), compression="zstd") as writer:
        for _, rows in map_shards(rows_of, shards, workers=workers, what="reading"):
            writer.write_table(rows)
            num_masks += rows.num_rows
    return num_masks


def rows_of(shard: Path, advance: Advance) -> Any:
    """The masks of a shard, a pyarrow Table."""
    import pyarrow as pa

    rows = _rows_beside(shard) if mask_table_path(shard).is_file() else _rows_inside(shard)
    advance(shard.stat().st_size)
    named = rows.add_column(0, "shard", pa.array([str(shard)] * rows.num_rows, pa.string()))
    return named.cast(_schema())


def _rows_beside(shard: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    path, wanted = mask_table_path(shard), MaskTable.schema()
    try:
        rows = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{path.name} does not read: {error}; sam-data repair writes it anew", shard=str(shard)) from error
    for name in set(wanted.names) - set(rows.column_names) - {"name"}:
        raise ShardError(f"{path.name} has no column {name!r}; sam-data repair writes it anew", shard=str(shard))
    if "name" not in rows.column_names:  # of before masks had names
        rows = rows.append_column("name", pa.array([""] * rows.num_rows, pa.string()))
    return rows.select(wanted.names)


def _rows_inside(shard: Path) -> Any:
    table = MaskTable()
    for sample in iterate_samples([shard]):
        table.add(sample.record)
    return table.to_arrow()


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("shard", pa.string()), *MaskTable.schema()])
