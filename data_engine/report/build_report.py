"""From a run folder to report.json and report.html."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_engine.report.comparison import Comparison, compare
from data_engine.report.cycle_run import CycleRun, read_run
from data_engine.report.mask_distributions import MAX_SHARDS, measure_stage
from data_engine.report.page import Page, render
from data_engine.report.stage_statistics import (
    StageStatistics,
    Truth,
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
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """What was found and where it was written."""

    stages: list[StageStatistics]
    notes: list[str]
    """What is missing or odd, a sentence each."""
    json_path: Path
    html_path: Path


def write_report(folder: Path, *, heldout_images: int = 24, device: torch.device | None = None) -> Report:
    """Write report.json and report.html into a run folder, finished or not.

    `heldout_images` is how many images the comparison of models looks at; `device` is where it runs, a GPU when there
    is one. Raises ConfigError when the folder is no run, ShardError when a finished shard does not read, and
    CheckpointError when a promoted checkpoint does not.
    """
    run = read_run(folder)
    manifests = [load_manifests(stage) for stage in run.stages]
    notes = [
        f"{s.step}: shards left out because they have no manifest and so are not finished: {n}."
        for s in run.stages
        if (n := s.num_unfinished())
    ]
    notes += [f"{s.step} was left out: {why}." for s in run.stages if (why := s.why_left_out())]
    notes += [
        f"Rolled back to the model of {trial.step} from that of {trial.rolled_back_from}"
        + (f": {trial.because}." if trial.because else ".")
        for trial in run.history
        if trial.rolled_back_from
    ]
    truth = _truth(run, manifests, notes)
    stages, galleries = _stages(run, manifests, truth, notes)
    comparison, reason = _comparison(run, heldout_images, device or default_device())
    if reason:
        notes.append(f"No comparison of models: {reason}.")
    logs = [read_log(stage.folder / "train" / "csv" / "metrics.csv") for stage in run.stages]
    page = Page(
        run=run,
        stages=stages,
        galleries=galleries,
        logs=logs,
        comparison=comparison,
        statistics=_statistics(run, manifests, notes),
        notes=notes,
    )
    report = Report(stages=stages, notes=notes, json_path=folder / "report.json", html_path=folder / "report.html")
    atomic_write_bytes(report.html_path, render(page).encode())
    atomic_write_bytes(report.json_path, _to_json(report, comparison))
    return report


def default_device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _truth(run: CycleRun, manifests: list[list[Manifest]], notes: list[str]) -> Truth | None:
    if run.ground_truth is None:
        notes.append("The config names no corpus.ground_truth, so nothing says how good the written masks are.")
        return None
    try:
        shards = expand_shards(run.ground_truth)
    except ConfigError as error:
        notes.append(f"No truth to measure the masks against: {error} (relative to {Path.cwd()}).")
        return None
    return read_ground_truth(shards, {key for of_stage in manifests for manifest in of_stage for key in manifest.keys})


def _stages(
    run: CycleRun, manifests: list[list[Manifest]], truth: Truth | None, notes: list[str]
) -> tuple[list[StageStatistics], list[list[Sample]]]:
    lines: list[StageStatistics] = []
    galleries: list[list[Sample]] = []
    for position, (stage, of_stage) in enumerate(zip(run.stages, manifests, strict=True)):
        keys = [key for manifest in of_stage for key in manifest.keys]
        shown = [keys[i] for i in evenly_spaced_indices(len(keys), NUM_GALLERY, at="ends")]
        # By the manifests read before, so that a shard finished meanwhile is in all numbers or in none.
        shards = [stage.folder / "shards" / manifest.shard for manifest in of_stage]
        masks = measure_masks(shards, truth or {}, set(shown))
        lines.append(compute_stage_statistics(run, position, of_stage, masks if truth is not None else None))
        galleries.append(masks.shown)
        if lines[-1].masks_without_truth:
            notes.append(
                f"{stage.step}: masks left out of mean IoU because the truth lacks their image: {lines[-1].masks_without_truth}."
            )
    return lines, galleries


def _statistics(run: CycleRun, manifests: list[list[Manifest]], notes: list[str]) -> list[Statistics]:
    found = []
    for stage, of_stage in zip(run.stages, manifests, strict=True):
        found.append(measure_stage([stage.folder / "shards" / manifest.shard for manifest in of_stage]))
        if len(of_stage) > MAX_SHARDS:
            notes.append(f"{stage.step}: the figures of its masks are those of {MAX_SHARDS} of {len(of_stage)} shards.")
    return found


def _comparison(run: CycleRun, num_images: int, device: torch.device) -> tuple[Comparison | None, str]:
    try:
        return compare(run, num_images=num_images, device=device), ""
    except ConfigError as error:
        return None, str(error)


def _to_json(report: Report, comparison: Comparison | None) -> bytes:
    document: dict[str, Any] = {"stages": [asdict(line) for line in report.stages], "comparison": None, "notes": report.notes}
    if comparison is not None:
        names = ("steps", "num_images", "num_objects", "num_better", "num_worse", "mean_ious")
        document["comparison"] = {name: getattr(comparison, name) for name in names}
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
