"""What the manifests and tables of a finished set say of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.files import file_sha256
from sam_train.shards.manifest import load_manifest
from sam_train.shards.mask_table import mask_table_path


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the set."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """Who made masks: one line for each stage, annotator, checkpoint and config that occurs."""

    stage: str
    annotator: str
    checkpoint: str
    config: str
    num_masks: int
    num_prompts: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class DatasetFacts:
    """Of all shards together."""

    shards: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """Of the tables: name -> schema.org's type."""
    num_images: int = 0
    num_masks: int = 0
    makers: list[MaskSource] = field(default_factory=list)
    """Most masks first."""
    counts: Counter[str] = field(default_factory=Counter)
    """What the makers counted, such as masks dropped by reason."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Why inputs are not in the set."""
    made_by: list[dict[str, Any]] = field(default_factory=list)
    """Each provenance that a manifest has, once."""


def read_dataset_facts(shards: Sequence[Path]) -> DatasetFacts:
    """From manifests and tables; of the tars only their sizes are looked at.

    Raises ShardError for a shard without manifest or table (it is not finished), or of another size than its manifest says.
    """
    facts = DatasetFacts()
    makers: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for shard in shards:
        manifest = load_manifest(shard)
        if shard.stat().st_size != manifest.bytes:
            raise ShardError(
                f"{shard.stat().st_size} bytes are not the manifest's {manifest.bytes}: see sam-data validate", shard=str(shard)
            )
        table = mask_table_path(shard)
        if not table.is_file():
            raise ShardError(
                f"no table {table.name} beside the shard: sam-data repair writes shards with theirs", shard=str(shard)
            )
        facts.shards.append(File(path=shard, bytes=manifest.bytes, sha256=manifest.sha256))
        facts.tables.append(File(path=table, bytes=table.stat().st_size, sha256=file_sha256(table)))
        facts.num_images += len(manifest.keys)
        facts.num_masks += manifest.num_masks
        facts.counts.update(manifest.counts)  # seconds among them
        facts.skipped.update(manifest.skipped.values())
        if manifest.provenance and manifest.provenance not in facts.made_by:
            facts.made_by.append(manifest.provenance)
        facts.columns = facts.columns or _columns(table)
        _count_makers(table, makers)
    facts.makers = [
        MaskSource(
            **dict(zip(("stage", "annotator", "checkpoint", "config"), names, strict=True)),
            num_masks=int(masks),
            num_prompts=int(prompts),
            seconds=seconds,
        )
        for names, (masks, prompts, seconds) in sorted(makers.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    return facts


def _count_makers(table: Path, makers: dict[tuple[str, ...], list[float]]) -> None:
    from pyarrow import parquet

    names = ["stage", "annotator", "checkpoint", "config"]
    grouped = parquet.read_table(table, columns=[*names, "num_prompts", "seconds"]).group_by(names)
    for row in grouped.aggregate([("num_prompts", "count"), ("num_prompts", "sum"), ("seconds", "sum")]).to_pylist():
        maker = makers[tuple(row[name] for name in names)]
        maker[0] += row["num_prompts_count"]
        maker[1] += row["num_prompts_sum"]
        maker[2] += row["seconds_sum"]


def _columns(table: Path) -> dict[str, str]:
    from pyarrow import parquet, types

    return {
        column.name: "sc:Text" if types.is_string(column.type) else "sc:Integer" if types.is_integer(column.type) else "sc:Float"
        for column in parquet.read_schema(table)
    }
