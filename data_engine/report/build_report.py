"""Write report.json, report.html and overview.png for the run folder of a data-engine loop."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_engine.report.comparison import Comparison, compare_models
from data_engine.report.cycle_run import CycleRun, read_run
from data_engine.report.effort import Effort, compute_effort
from data_engine.report.mask_distributions import MAX_SHARDS, measure_stage
from data_engine.report.overview import draw_overview
from data_engine.report.page import Page, render
from data_engine.report.stage_statistics import (
    GroundTruth,
    StageStatistics,
    compute_stage_statistics,
    load_manifests,
    measure_masks,
    read_ground_truth,
)
from data_engine.report.training_log import read_log
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.shards import Manifest, Sample, expand_shards
from sam_train.shards.maintenance.statistics.measure import Statistics
from sam_train.subsets import evenly_spaced_indices

NUM_GALLERY = 6
"""Images that are shown per stage."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """A written report: the stage table, the notes and the two files."""

    stages: list[StageStatistics]
    final: dict[str, dict[str, float]]
    """Means of the initial ("start") and the promoted model on the final shards, as far as they were measured."""
    effort: Effort | None
    notes: list[str]
    """Missing or unusual things, one sentence each."""
    json_path: Path
    html_path: Path


def write_report(path: Path, *, heldout_images: int = 24, device: torch.device | None = None) -> Report:
    """Write report.json, report.html and overview.png into the run folder `path`, whether its loop is finished or not.

    `heldout_images` is the number of images on which the models are compared; `device` is where they run, by default a GPU
    if there is one. Raises ConfigError if `path` is not the folder of a loop, ShardError for an invalid finished shard, and
    CheckpointError for an invalid promoted checkpoint.
    """
    run = read_run(path)
    manifests = [load_manifests(stage) for stage in run.stages]
    notes = _notes_on_run(run)
    ground_truth = _read_ground_truth(run, manifests, notes)
    stages, galleries = _measure_stages(run, manifests, ground_truth, notes)
    comparison, reason = _compare_models(run, heldout_images, device or default_device())
    if reason:
        notes.append(f"No comparison of models: {reason}.")
    final, effort = run.folder.read_final_evaluations(), compute_effort(stages)
    page = Page(
        run=run,
        stages=stages,
        final=final,
        effort=effort,
        galleries=galleries,
        logs=[read_log(stage.folder.training_log) for stage in run.stages],
        comparison=comparison,
        statistics=_measure_distributions(run, manifests, notes),
        notes=notes,
    )
    paths = {"json_path": run.folder.report_json, "html_path": run.folder.report_html}
    report = Report(stages=stages, final=final, effort=effort, notes=notes, **paths)
    atomic_write_bytes(report.html_path, render(page).encode())
    if overview := draw_overview(stages, galleries, comparison):
        atomic_write_bytes(run.folder.overview, overview)
    atomic_write_bytes(report.json_path, _to_json(report, comparison))
    return report


def default_device() -> torch.device:
    """Return a GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _notes_on_run(run: CycleRun) -> list[str]:
    """Return notes on unfinished shards, skipped steps and roll-backs."""
    notes = [
        f"{stage.step}: {number} shards are excluded because they have no manifest, so they are not finished."
        for stage in run.stages
        if (number := stage.num_unfinished())
    ]
    notes += [f"{stage.step} was skipped: {reason}." for stage in run.stages if (reason := stage.folder.skip_reason())]
    notes += [
        f"Rolled back to the model of {record.step} from that of {record.rolled_back_from}"
        + (f": {record.reason}." if record.reason else ".")
        for record in run.history
        if record.rolled_back_from
    ]
    return notes


def _read_ground_truth(run: CycleRun, manifests: list[list[Manifest]], notes: list[str]) -> GroundTruth | None:
    if run.ground_truth is None:
        notes.append("The config names no corpus.ground_truth, so the quality of the written masks is unknown.")
        return None
    try:
        shards = expand_shards(run.ground_truth)
    except ConfigError as error:
        notes.append(f"The ground truth of the masks is unavailable: {error} (relative to {Path.cwd()}).")
        return None
    return read_ground_truth(shards, {key for of_stage in manifests for manifest in of_stage for key in manifest.keys})


def _measure_stages(
    run: CycleRun, manifests: list[list[Manifest]], ground_truth: GroundTruth | None, notes: list[str]
) -> tuple[list[StageStatistics], list[list[Sample]]]:
    """Return the statistics of each stage, and the images of it that are shown."""
    stages: list[StageStatistics] = []
    galleries: list[list[Sample]] = []
    for position, (stage, of_stage) in enumerate(zip(run.stages, manifests, strict=True)):
        keys = [key for manifest in of_stage for key in manifest.keys]
        shown = [keys[i] for i in evenly_spaced_indices(len(keys), NUM_GALLERY, at="ends")]
        # Only the shards of the manifests that were read, so that a shard that is finished meanwhile is in no number.
        shards = [stage.folder.shards / manifest.shard for manifest in of_stage]
        masks = measure_masks(shards, ground_truth or {}, set(shown))
        stages.append(compute_stage_statistics(run, position, of_stage, masks if ground_truth is not None else None))
        galleries.append(masks.shown)
        if number := stages[-1].masks_without_truth:
            notes.append(f"{stage.step}: {number} masks are not in the mean IoU because their image has no ground truth.")
    return stages, galleries


def _measure_distributions(run: CycleRun, manifests: list[list[Manifest]], notes: list[str]) -> list[Statistics]:
    statistics = []
    for stage, of_stage in zip(run.stages, manifests, strict=True):
        statistics.append(measure_stage([stage.folder.shards / manifest.shard for manifest in of_stage]))
        if len(of_stage) > MAX_SHARDS:
            notes.append(f"{stage.step}: the mask distributions are those of {MAX_SHARDS} of {len(of_stage)} shards.")
    return statistics


def _compare_models(run: CycleRun, num_images: int, device: torch.device) -> tuple[Comparison | None, str]:
    """Return the comparison, or the reason why there is none."""
    try:
        return compare_models(run, num_images=num_images, device=device), ""
    except ConfigError as error:
        return None, str(error)


def _to_json(report: Report, comparison: Comparison | None) -> bytes:
    document: dict[str, Any] = {"stages": [asdict(row) for row in report.stages], "comparison": None, "notes": report.notes}
    document |= {"final": report.final, "effort": asdict(report.effort) if report.effort else None}
    if comparison is not None:
        names = ("steps", "num_images", "num_objects", "num_better", "num_worse", "mean_ious")
        document["comparison"] = {name: getattr(comparison, name) for name in names}
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
