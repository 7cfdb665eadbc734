"""Render report.html: this module formats all numbers and images, the template only places them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_engine.report.comparison import MASKS_PER_IMAGE, MIN_AREA_PX, ComparedObject, Comparison
from data_engine.report.curves import cost_svg, quality_svg, training_svg
from data_engine.report.cycle_run import MIOU_KEYS, CycleRun
from data_engine.report.effort import Effort
from data_engine.report.mask_distributions import distributions_svg
from data_engine.report.mask_images import data_uri, decode_mask, draw_prediction, draw_sample, draw_target, window_around
from data_engine.report.stage_statistics import StageStatistics
from data_engine.report.stage_table import COLUMNS, MODEL_MEANING, MODEL_TITLE, cell, model_cell
from data_engine.report.training_log import Series
from sam_train.shards import Sample, decode_jpeg
from sam_train.shards.maintenance.statistics.measure import Statistics

IMAGES_PER_ROW = 3
_FINAL_MODELS = {"start": "the initial model", "promoted": "the model in use after the last stage"}
REASONS = {
    "predicted_iou": "the model predicted a low IoU for the mask",
    "stability": "the mask changes a lot with the threshold of the logits, so its edge is uncertain",
    "empty": "the mask has no pixel",
    "covers_image": "the mask covers nearly the whole image",
    "crop_edge": "the mask touches the edge of a crop, so the object is cut off",
    "nms": "a mask with a higher score has nearly the same box",
    "nms_across_crops": "a smaller crop gave a mask with nearly the same box",
    "small_region": "the connected regions of the mask are too small",
    "review_no_object": "the annotator reviewed the mask and found no object there",
    "review_duplicate": "the annotator reviewed the mask and had annotated that object already",
}
"""Explanation of the reasons for which the stages drop masks; other names are shown without one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Page:
    """The content of the page."""

    run: CycleRun
    stages: list[StageStatistics]
    final: dict[str, dict[str, float]]
    """Means on the final shards by model, "start" and "promoted"; empty if there are none."""
    effort: Effort | None
    galleries: list[list[Sample]]
    """Images to show, one list per stage."""
    logs: list[dict[str, Series]]
    """Training logs, one per stage."""
    comparison: Comparison | None
    statistics: list[Statistics]
    """Mask distributions, one per stage."""
    notes: list[str]


def render(page: Page) -> str:
    """Return the page as one HTML file that contains its styles and images and loads nothing."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        name=page.run.folder.path.resolve().name,
        notes=page.notes,
        tiles=_tiles(page.stages, page.run.device_hours(), page.effort),
        final=[(_FINAL_MODELS[model], [f"{means[key]:.3f}" for key in MIOU_KEYS]) for model, means in page.final.items()],
        effort=page.effort,
        columns=[("Stage", "")] + [(c.title, c.meaning) for c in COLUMNS] + [(MODEL_TITLE, MODEL_MEANING)],
        rows=[(_stage_name(s), [cell(s, column) for column in COLUMNS], model_cell(s)) for s in page.stages],
        figures={
            "quality": quality_svg(page.stages),
            "cost": cost_svg(page.stages),
            "training": training_svg([line.step for line in page.stages], page.logs),
            "data": distributions_svg([_stage_name(line) for line in page.stages], page.statistics),
        },
        galleries=[
            _gallery(line, samples) for line, samples in zip(page.stages, page.galleries, strict=True) if line.stage != "start"
        ],
        comparison=_format_comparison(page.comparison) if page.comparison else None,
        dropped=_count_rows(page.stages, lambda line: line.dropped),
        skipped=_count_rows(page.stages, lambda line: {reason: float(n) for reason, n in line.skipped.items()}),
        counts=_count_rows(page.stages, lambda line: line.counts),
        stage_names=[_stage_name(line) for line in page.stages],
        command=_rerun_command(page.run.folder.path),
        report_command=f"sam-report {shlex.quote(f'run={page.run.folder.path}')}",
    )


def _stage_name(line: StageStatistics) -> str:
    return line.step.replace("_", " ")


def _tiles(stages: list[StageStatistics], device_hours: float | None, effort: Effort | None) -> list[dict[str, str]]:
    """Return the most important numbers, each with a note on its context."""
    masks, images = (sum(getattr(line, key) or 0 for line in stages) for key in ("masks", "images"))
    tiles = [{"title": "Masks written", "value": f"{masks:,}", "from": f"in {images:,} images"}]
    for title, key, digits in (
        ("mIoU after one click", "miou_at_1", 3),
        ("Clicks per mask", "clicks_per_mask", 2),
        ("Seconds per mask", "seconds_per_mask", 1),
    ):
        known = [(line, value) for line in stages if (value := getattr(line, key)) is not None]
        if not known:
            tiles.append({"title": title, "value": "not yet", "from": ""})
            continue
        (first, before), (last, after) = known[0], known[-1]
        source = f"from {before:.{digits}f} in stage {first.step.split('_')[0]}" if first is not last else _stage_name(first)
        tiles.append({"title": title, "value": f"{after:.{digits}f}", "from": source})
    hours = [line.seconds_per_mask * line.masks / 3600 for line in stages if line.seconds_per_mask is not None and line.masks]
    by_hand = f"instead of {effort.hours_by_hand:,.1f} by hand; " if effort else ""
    devices = f"and {device_hours:,.2g} device hours (GPUs, or 1 without)" if device_hours is not None else "over all stages"
    if hours:
        tiles.append({"title": "Annotator hours", "value": f"{sum(hours):,.1f}", "from": by_hand + devices})
    return tiles


def _gallery(line: StageStatistics, samples: list[Sample]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    for sample in samples:
        number = len(sample.record.masks)
        caption = f"{number} mask{'' if number == 1 else 's'}"
        ratio = round(sample.record.width / sample.record.height, 3)
        images.append({"uri": data_uri(draw_sample(sample)), "caption": caption, "key": sample.record.key, "ratio": ratio})
    rows = [images[start : start + IMAGES_PER_ROW] for start in range(0, len(images), IMAGES_PER_ROW)]
    return {
        "name": _stage_name(line),
        "images": line.images,
        "masks": line.masks,
        "rows": [{"images": row, "ratio": f"{sum(image['ratio'] for image in row):.3f}"} for row in rows],
    }


def _format_comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": [step.replace("_", " ") for step in comparison.steps],
        "means": [f"{mean:.3f}" for mean in comparison.mean_ious],
        "rows": [_format_object(item) for item in comparison.shown],
        "worst": [_format_object(item, last_only=True) for item in comparison.worst],
        "num_objects": comparison.num_objects,
        "num_images": comparison.num_images,
        "num_better": comparison.num_better,
        "num_worse": comparison.num_worse,
        "masks_per_image": MASKS_PER_IMAGE,
        "min_area": MIN_AREA_PX,
    }


def _format_object(item: ComparedObject, *, last_only: bool = False) -> dict[str, Any]:
    """Return the images of one object with the predictions of all models, or of the last one only."""
    if last_only:
        item = replace(item, predictions=item.predictions[-1:], ious=item.ious[-1:])
    record = item.sample.record
    image = decode_jpeg(item.sample.jpeg, shard=item.sample.shard, key=record.key)
    target = decode_mask(item.sample, item.target)
    predictions = [decode_mask(item.sample, prediction) for prediction in item.predictions]
    window = window_around([target, *predictions])
    return {
        "key": record.key,
        "gain": f"{item.gain:+.2f}" if len(item.ious) > 1 else "",
        "worse": item.gain < 0,
        "target": data_uri(draw_target(image, target, item.click_xy, window)),
        "predictions": [
            {"uri": data_uri(draw_prediction(image, target, prediction, window)), "iou": f"{iou:.2f}"}
            for prediction, iou in zip(predictions, item.ious, strict=True)
        ],
    }


def _count_rows(stages: list[StageStatistics], counts: Callable[[StageStatistics], dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each name that any stage counted, the most frequent first; None for a stage without finished shards."""
    by_stage = [counts(line) for line in stages]
    totals = {name: sum(count.get(name, 0) for count in by_stage) for name in sorted({n for c in by_stage for n in c})}
    rows: list[dict[str, Any]] = []
    for name in sorted(totals, key=lambda name: -totals[name]):
        values = [None if s.masks is None else f"{c.get(name, 0):,.10g}" for s, c in zip(stages, by_stage, strict=True)]
        rows.append({"name": name.replace("_", " "), "reason": REASONS.get(name, ""), "values": values})
    return rows


def _rerun_command(path: Path) -> str:
    """Return the command that runs the whole loop again with the resolved config of this run, into another folder.

    In the same folder every finished action would be skipped.
    """
    quoted, again = shlex.quote(str(path)), shlex.quote(f"{path}_again")
    # Hydra resolves a relative --config-path against its own module, and would write its logs to outputs/.
    config = f"--config-path {quoted if path.is_absolute() else '$PWD/' + quoted} --config-name config"
    return f"sam-cycle {config} run_dir={again} hydra.run.dir=. hydra.output_subdir=null"
