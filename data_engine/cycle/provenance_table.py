"""The table of masks: for each mask of a loop the model, annotator and prompts that it comes from.

It is read from the shards, where each mask carries its provenance; promoted.json maps the hash of a checkpoint to the step
that trained it. masks.parquet has one row per mask:

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
from data_engine.cycle_folder import CycleFolder, parse_steps
from data_engine.cycle_folder.promotion import read_history
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
"""Columns. `step`: the step that wrote the mask; `model_step`: the step that trained the model, empty if no model was used;
`prompts`: points as [x, y, label]."""


def print_provenance(folder: CycleFolder, cfg: DictConfig, *, image: str = "", out: Path | None = None) -> None:
    """Write masks.parquet and print a summary of it, or the masks of one image. Raises ConfigError if the image has none."""
    out = out or folder.masks_table
    write_provenance_table(out, folder, [step.name for step in parse_steps(cfg.stages)])
    rows = parquet.read_table(out, filters=[("image_key", "=", image)] if image else None)
    if image:
        if not rows.num_rows:
            raise ConfigError(f"no mask of an image {image!r} was written: its key is the name of its .jpg in a shard")
        console.print(image_table(rows.to_pylist()))
    else:
        console.print(summary_table(rows))
        for line in promotion_lines(folder):
            console.print(line)
    console.print(f"{out}: {parquet.read_metadata(out).num_rows} masks")


def write_provenance_table(out: Path, folder: CycleFolder, steps: Sequence[str]) -> None:
    """Write one row per mask in the finished shards of `steps`. Only one shard at a time is in memory. Raises ShardError."""
    trained_by = {record.sha256: record.step for record in reversed(read_history(folder))}
    with atomic_write(out) as stream, parquet.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
        for step in steps:
            for shard in done_shards(folder.step(step).shards):
                rows = [{"step": step, "shard": shard.name, **row} for row in mask_rows(shard, trained_by)]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def mask_rows(shard: Path, trained_by: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the row of each mask in a shard.

    `trained_by` maps the hash of a checkpoint to its step. The first 12 digits of the hash stand for a checkpoint of no step.
    """
    for sample in iterate_samples([shard]):
        for mask in sample.record.masks:
            provenance = mask.provenance
            checkpoint = provenance.checkpoint if provenance else ""
            yield {
                "image_key": sample.record.key,
                "image_id": sample.record.image_id,
                "mask_id": mask.id,
                "area": mask.area,
                "stage": provenance.stage if provenance else "",
                "annotator": provenance.annotator if provenance else "",
                "checkpoint": checkpoint,
                "model_step": trained_by.get(checkpoint, checkpoint[:12]),
                "config": provenance.config if provenance else "",
                "prompts": provenance.prompts if provenance else [],
                "seconds": provenance.seconds if provenance else 0.0,
                "predicted_iou": mask.predicted_iou,
                "stability_score": mask.stability_score,
            }


def summary_table(rows: pa.Table) -> Table:
    """Return the number of masks by step, annotator and model, in the order in which they were written."""
    keys = ["step", "annotator", "model_step"]
    rows = rows.append_column("num_prompts", pyarrow.compute.list_value_length(rows["prompts"]))
    sums = rows.group_by(keys, use_threads=False).aggregate([("mask_id", "count"), ("num_prompts", "mean"), ("seconds", "mean")])
    table = Table("step", "annotator", "model of", "masks", "prompts", "seconds", **STYLE)
    for row in sums.to_pylist():
        numbers = [f"{row['mask_id_count']:,}", f"{row['num_prompts_mean']:.2f}", f"{row['seconds_mean']:.1f}"]
        table.add_row(*(row[key] or "none" for key in keys), *numbers)
    return table


def image_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with the masks of one image."""
    table = Table("step", "mask", "annotator", "model of", "prompts [x, y, label]", "seconds", **STYLE)
    for row in rows:
        prompts = " ".join(f"{x:.0f},{y:.0f},{label:.0f}" for x, y, label in row["prompts"]) or "drawn by hand"
        seconds = f"{row['seconds']:.1f}"
        table.add_row(row["step"], str(row["mask_id"]), row["annotator"], row["model_step"] or "none", prompts, seconds)
    return table


def promotion_lines(folder: CycleFolder) -> Iterator[str]:
    """Yield a line for each decision and roll-back, oldest first."""
    for record in read_history(folder):
        if record.rolled_back_from:
            reason = f": {record.reason}" if record.reason else ""
            yield f"rolled back to the model of {record.step} from that of {record.rolled_back_from}{reason}"
        else:
            yield f"model of {record.step} {record.sha256[:12]}: {'promoted' if record.promoted else 'not better'}"
