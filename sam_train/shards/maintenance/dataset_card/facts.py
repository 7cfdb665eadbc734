"""Summary of a finished data set, read from its manifests and tables."""

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
    """A file of the data set."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """Masks with the same stage, annotator, checkpoint and config."""

    stage: str
    annotator: str
    checkpoint: str
    config: str
    num_masks: int
    num_prompts: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class DatasetFacts:
    """Summary over all shards."""

    shards: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of the tables: name -> type of schema.org."""
    num_images: int = 0
    num_masks: int = 0
    sources: list[MaskSource] = field(default_factory=list)
    """Sources of the masks, those with most masks first."""
    counts: Counter[str] = field(default_factory=Counter)
    """Counts of the manifests, such as masks dropped by reason."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of inputs that are not in the data set, by reason."""
    made_by: list[dict[str, Any]] = field(default_factory=list)
    """The different provenances in the manifests."""


def read_dataset_facts(shards: Sequence[Path]) -> DatasetFacts:
    """Read manifests and tables; of the tars only the sizes are checked.

    Raises ShardError for a shard without manifest or table, which is not finished, or of another size than in its manifest.
    """
    facts = DatasetFacts()
    sources: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for shard in shards:
        manifest = load_manifest(shard)
        if shard.stat().st_size != manifest.bytes:
            raise ShardError(
                f"the shard has {shard.stat().st_size} bytes, its manifest {manifest.bytes}: run sam-data validate",
                shard=str(shard),
            )
        table = mask_table_path(shard)
        if not table.is_file():
            raise ShardError(f"there is no table {table.name} beside the shard: sam-data repair writes one", shard=str(shard))
        facts.shards.append(File(path=shard, bytes=manifest.bytes, sha256=manifest.sha256))
        facts.tables.append(File(path=table, bytes=table.stat().st_size, sha256=file_sha256(table)))
        facts.num_images += len(manifest.keys)
        facts.num_masks += manifest.num_masks
        facts.counts.update(manifest.counts)  # seconds among them
        facts.skipped.update(manifest.skipped.values())
        if manifest.provenance and manifest.provenance not in facts.made_by:
            facts.made_by.append(manifest.provenance)
        facts.columns = facts.columns or _columns(table)
        _count_sources(table, sources)
    facts.sources = [
        MaskSource(
            **dict(zip(("stage", "annotator", "checkpoint", "config"), names, strict=True)),
            num_masks=int(masks),
            num_prompts=int(prompts),
            seconds=seconds,
        )
        for names, (masks, prompts, seconds) in sorted(sources.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    return facts


def _count_sources(table: Path, sources: dict[tuple[str, ...], list[float]]) -> None:
    from pyarrow import parquet

    names = ["stage", "annotator", "checkpoint", "config"]
    grouped = parquet.read_table(table, columns=[*names, "num_prompts", "seconds"]).group_by(names)
    for row in grouped.aggregate([("num_prompts", "count"), ("num_prompts", "sum"), ("seconds", "sum")]).to_pylist():
        source = sources[tuple(row[name] for name in names)]
        source[0] += row["num_prompts_count"]
        source[1] += row["num_prompts_sum"]
        source[2] += row["seconds_sum"]


def _columns(table: Path) -> dict[str, str]:
    from pyarrow import parquet, types

    return {
        column.name: "sc:Text" if types.is_string(column.type) else "sc:Integer" if types.is_integer(column.type) else "sc:Float"
        for column in parquet.read_schema(table)
    }
