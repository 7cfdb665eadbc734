"""The mask table of a shard: one row per mask, equal bytes for equal masks, SQL queries over a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sam_train.cli.commands import data as main
from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards import iterate_samples, write_shard
from sam_train.shards.mask_table import MASK_TABLE_COLUMNS, encode_mask_table, mask_table_path

Samples = list[tuple[ImageRecord, bytes]]


def with_provenance(record: ImageRecord, stage: str) -> ImageRecord:
    provenance = Provenance(stage=stage, checkpoint="c" * 64, annotator="ann", config="d" * 64, prompts=[[1, 2, 1]], seconds=2.5)
    return replace(record, masks=[replace(mask, provenance=provenance) for mask in record.masks])


def test_table_has_one_row_per_mask(tiny_shard: Path, tiny_samples: Samples) -> None:
    from pyarrow import parquet

    rows = parquet.read_table(mask_table_path(tiny_shard)).to_pylist()
    masks = [(record, mask) for record, _ in tiny_samples for mask in record.masks]
    assert len(rows) == len(masks) == 3
    for row, (record, mask) in zip(rows, masks, strict=True):
        assert tuple(row) == MASK_TABLE_COLUMNS
        assert (row["image_key"], row["image_id"], row["mask_id"], row["area"]) == (
            record.key,
            record.image_id,
            mask.id,
            mask.area,
        )
        assert [row[f"box_{n}"] for n in ("x", "y", "width", "height")] == mask.bbox
        assert (row["predicted_iou"], row["stability_score"]) == (mask.predicted_iou, mask.stability_score)
        assert (row["stage"], row["seconds"], row["num_prompts"]) == ("", 0.0, 0)


def test_equal_masks_give_equal_bytes(tiny_shard: Path) -> None:
    records = [sample.record for sample in iterate_samples([tiny_shard])]
    assert encode_mask_table(records) == mask_table_path(tiny_shard).read_bytes()


def test_sql_queries_a_folder(tmp_path: Path, tiny_samples: Samples) -> None:
    duckdb = pytest.importorskip("duckdb")
    for name, stage in (("sa_000000", "assisted_manual"), ("sa_000001", "fully_automatic"), ("sa_000002", "fully_automatic")):
        write_shard(tmp_path / f"{name}.tar", [(with_provenance(record, stage), jpeg) for record, jpeg in tiny_samples])
    query = f"SELECT stage, count(*), sum(area), max(seconds) FROM '{tmp_path}/*.parquet' GROUP BY stage ORDER BY stage"  # noqa: S608
    area = sum(mask.area for record, _ in tiny_samples for mask in record.masks)
    assert duckdb.sql(query).fetchall() == [("assisted_manual", 3, area, 2.5), ("fully_automatic", 6, 2 * area, 2.5)]


def test_an_empty_shard_has_an_empty_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_shard(tmp_path / "a.tar", [])
    table = parquet.read_table(mask_table_path(tmp_path / "a.tar"))
    assert (table.num_rows, tuple(table.column_names)) == (0, MASK_TABLE_COLUMNS)


def test_rejects_ids_of_more_than_63_bits(tmp_path: Path, mask_record: Callable[..., MaskRecord], tiny_samples: Samples) -> None:
    record, jpeg = tiny_samples[0]
    with pytest.raises(ShardError, match="64 bits"):
        write_shard(tmp_path / "a.tar", [(replace(record, image_id=1 << 63), jpeg)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three_shards(tmp_path: Path, tiny_samples: Samples) -> Path:
    """Shards with a table, with one of an earlier version without names, and with none, as Meta's tars."""
    import pyarrow as pa
    from pyarrow import parquet

    for name in ("a", "b", "c"):
        samples = [(with_provenance(record, name), jpeg) for record, jpeg in tiny_samples]
        write_shard(tmp_path / "set" / f"{name}.tar", samples)
    old = mask_table_path(tmp_path / "set" / "b.tar")
    table: pa.Table = parquet.read_table(old)
    parquet.write_table(table.drop_columns(["name"]), old)
    mask_table_path(tmp_path / "set" / "c.tar").unlink()
    return tmp_path / "set"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_merges_the_tables_of_all_shards(
    three_shards: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    main(["table", str(three_shards), "--out", str(tmp_path / "masks.parquet"), "--workers", workers])
    assert capsys.readouterr().out == f"{tmp_path}/masks.parquet: 9 masks of 3 shards\n"
    rows = parquet.read_table(tmp_path / "masks.parquet").to_pylist()
    assert [row["stage"] for row in rows] == list("aaabbbccc")
    shards = [three_shards / f"{name}.tar" for name in "abc"]
    assert [row["shard"] for row in rows] == [str(shard) for shard in shards for _ in range(3)]
    for row in rows:
        assert tuple(row) == ("shard", *MASK_TABLE_COLUMNS)
    records = [sample.record for sample in iterate_samples(shards)]
    plain = pyarrow_rows(encode_mask_table(records))
    assert [{name: row[name] for name in MASK_TABLE_COLUMNS} for row in rows] == plain


def pyarrow_rows(data: bytes) -> list[dict[str, object]]:
    from pyarrow import BufferReader, parquet

    rows: list[dict[str, object]] = parquet.read_table(BufferReader(data)).to_pylist()
    return rows


def test_sql_and_data_frames_read_the_merged_table(three_shards: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    main(["table", str(three_shards), "--out", str(tmp_path / "masks.parquet")])
    query = f"SELECT count(*), count(DISTINCT shard), max(seconds) FROM '{tmp_path}/masks.parquet' WHERE stage > 'a'"  # noqa: S608
    assert duckdb.sql(query).fetchall() == [(6, 2, 2.5)]


def test_unreadable_shard_keeps_the_old_merged_table(three_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "masks.parquet").write_bytes(b"the old one")
    for damaged in ("c.tar", "a.masks.parquet"):
        whole = (three_shards / damaged).read_bytes()
        (three_shards / damaged).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SystemExit, match="1"):
            main(["table", str(three_shards), "--out", str(tmp_path / "masks.parquet")])
        (three_shards / damaged).write_bytes(whole)
        assert (tmp_path / "masks.parquet").read_bytes() == b"the old one"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.parquet", "set"]
