"""The ledger of masks: of every mask that a cycle wrote, which model, annotator and prompts made it.

It is read from the shards themselves, where each mask carries its provenance, and the hash of a checkpoint is followed to the
step that trained it by promoted.json. A row a mask in masks.parquet:

    duckdb -c "SELECT model_step, annotator, count(*), avg(seconds) FROM 'runs/NAME/masks.parquet' GROUP BY ALL"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from omegaconf import DictConfig
from pyarrow import parquet
from rich import box
from rich.table import Table

from data_engine.console import console
from data_engine.cycle_folder.promotion import history
from data_engine.cycle_folder.steps import parse_steps
from sam_train.errors import ConfigError
from sam_train.files import atomic_write
from sam_train.shards import done_shards, iterate_samples

STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "show_edge": False}

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("step", "shard", "image_key")),
        *((name, pa.int64()) for name in ("image_id", "mask_id", "area")),
        *((name, pa.string()) for name in ("stage", "annotator", "checkpoint", "model_step", "config")),
        ("prompts", pa.list_(pa.list_(pa.float64()))),
        *((name, pa.float64()) for name in ("seconds", "predicted_iou", "stability_score")),
    ]
)
"""`step`: which wrote it; `model_step`: which trained the model that helped, empty when none did; `prompts`: [x, y, label]."""


def print_provenance(run_dir: Path, cfg: DictConfig, *, image: str = "", out: Path | None = None) -> None:
    """Write masks.parquet and print what it comes to, or the masks of one image. Raises ConfigError for an image without any."""
    out = out or run_dir / "masks.parquet"
    names = [step.name for step in parse_steps(cfg.stages)]
    write_provenance_table(out, run_dir, names)
    rows = parquet.read_table(out, filters=[("image_key", "=", image)] if image else None)
    if image:
        if not rows.num_rows:
            raise ConfigError(f"no mask of an image {image!r} was written: its key is the name of its .jpg in a shard")
        console.print(image_table(rows.to_pylist()))
    else:
        console.print(summary_table(rows))
        for line in verdicts(run_dir):
            console.print(line)
    console.print(f"{out}: {parquet.read_metadata(out).num_rows} masks")


def write_provenance_table(out: Path, run_dir: Path, steps: Sequence[str]) -> None:
    """A row for each mask in the finished shards of these steps, a shard at a time in memory. Raises ShardError."""
    trained_by = {entry["sha256"]: entry["step"] for entry in reversed(history(run_dir))}
    with atomic_write(out) as stream, parquet.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
        for step in steps:
            for shard in done_shards(run_dir / step / "shards"):
                rows = [{"step": step, "shard": shard.name, **row} for row in mask_rows(shard, trained_by)]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def mask_rows(shard: Path, trained_by: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The masks of a shard. `trained_by`: hash of a checkpoint -> step. A checkpoint of no step is named by its hash."""
    for sample in iterate_samples([shard]):
        for mask in sample.record.masks:
            made = mask.provenance
            checkpoint = made.checkpoint if made else ""
            yield {
                "image_key": sample.record.key,
                "image_id": sample.record.image_id,
                "mask_id": mask.id,
                "area": mask.area,
                "stage": made.stage if made else "",
                "annotator": made.annotator if made else "",
                "checkpoint": checkpoint,
                "model_step": trained_by.get(checkpoint, checkpoint[:12]),
                "config": made.config if made else "",
                "prompts": made.prompts if made else [],
                "seconds": made.seconds if made else 0.0,
                "predicted_iou": mask.predicted_iou,
                "stability_score": mask.stability_score,
            }


def summary_table(rows: pa.Table) -> Table:
    """Masks by step, annotator and model, in the order written."""
    keys = ["step", "annotator", "model_step"]
    rows = rows.append_column("num_prompts", pyarrow.compute.list_value_length(rows["prompts"]))
    sums = rows.group_by(keys, use_threads=False).aggregate([("mask_id", "count"), ("num_prompts", "mean"), ("seconds", "mean")])
    table = Table("step", "annotator", "model of", "masks", "prompts", "seconds", **STYLE)
    for row in sums.to_pylist():
        numbers = [f"{row['mask_id_count']:,}", f"{row['num_prompts_mean']:.2f}", f"{row['seconds_mean']:.1f}"]
        table.add_row(*(row[key] or "none" for key in keys), *numbers)
    return table


def image_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The masks of one image, one by one."""
    table = Table("step", "mask", "annotator", "model of", "prompts [x, y, label]", "seconds", **STYLE)
    for row in rows:
        prompts = " ".join(f"{x:.0f},{y:.0f},{label:.0f}" for x, y, label in row["prompts"]) or "drawn by hand"
        seconds = f"{row['seconds']:.1f}"
        table.add_row(row["step"], str(row["mask_id"]), row["annotator"], row["model_step"] or "none", prompts, seconds)
    return table


def verdicts(run_dir: Path) -> Iterator[str]:
    """What became of each model, a line each, oldest first."""
    for entry in history(run_dir):
        if "rolled_back_from" in entry:
            because = f": {entry['because']}" if entry["because"] else ""
            yield f"rolled back to the model of {entry['step']} from that of {entry['rolled_back_from']}{because}"
        else:
            yield f"model of {entry['step']} {entry['sha256'][:12]}: {'promoted' if entry['promoted'] else 'not better'}"
