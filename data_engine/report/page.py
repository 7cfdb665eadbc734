"""report.html: everything is put into words and pictures here, the template only places it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_engine.report.comparison import MASKS_PER_IMAGE, MIN_AREA_PX, ComparedObject, Comparison
from data_engine.report.curves import cost_svg, quality_svg, training_svg
from data_engine.report.cycle_run import CycleRun
from data_engine.report.mask_distributions import data_svg
from data_engine.report.mask_images import data_uri, decode_mask, draw_answer, draw_sample, draw_target, window_around
from data_engine.report.stage_statistics import StageStatistics
from data_engine.report.stage_table import COLUMNS, MODEL_MEANING, MODEL_TITLE, cell, model_cell
from data_engine.report.training_log import Series
from sam_train.shards import Sample, decode_jpeg
from sam_train.shards.maintenance.statistics.measure import Statistics

SHOTS_PER_ROW = 3
# Names by which the stages count; a name that is not here speaks for itself.
REASONS = {
    "predicted_iou": "the model itself rated the mask low",
    "stability": "the mask changes much with the threshold, so its edge is a guess",
    "empty": "no pixel was left",
    "covers_image": "the mask is nearly the whole image",
    "crop_edge": "the mask touches the edge of a zoomed-in crop, so the object is cut",
    "nms": "a better mask has nearly the same box",
    "nms_across_crops": "a crop that is zoomed in further has it too",
    "small_region": "too few pixels hang together",
    "review_no_object": "the annotator was shown it and saw no object there",
    "review_duplicate": "the annotator was shown it and had that object already",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Page:
    """What the page is made from."""

    run: CycleRun
    stages: list[StageStatistics]
    galleries: list[list[Sample]]
    """For each stage the images to show."""
    logs: list[dict[str, Series]]
    """For each stage the trainer's log."""
    comparison: Comparison | None
    statistics: list[Statistics]
    """What the masks of each stage are like."""
    notes: list[str]


def render(page: Page) -> str:
    """The page as one HTML file: styles and pictures inside, nothing is loaded from anywhere."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(
        name=page.run.folder.resolve().name,
        notes=page.notes,
        tiles=_tiles(page.stages, page.run.device_hours()),
        columns=[("Stage", "")] + [(c.title, c.meaning) for c in COLUMNS] + [(MODEL_TITLE, MODEL_MEANING)],
        rows=[(_stage_name(s), [cell(s, column) for column in COLUMNS], model_cell(s)) for s in page.stages],
        figures={
            "quality": quality_svg(page.stages),
            "cost": cost_svg(page.stages),
            "training": training_svg([line.step for line in page.stages], page.logs),
            "data": data_svg([_stage_name(line) for line in page.stages], page.statistics),
        },
        galleries=[
            _gallery(line, samples) for line, samples in zip(page.stages, page.galleries, strict=True) if line.stage != "start"
        ],
        comparison=_comparison(page.comparison) if page.comparison else None,
        dropped=_counted(page.stages, lambda line: line.dropped),
        skipped=_counted(page.stages, lambda line: {reason: float(n) for reason, n in line.skipped.items()}),
        counts=_counted(page.stages, lambda line: line.counts),
        stage_names=[_stage_name(line) for line in page.stages],
        command=_command(page.run.folder),
        report_command=f"sam-report {shlex.quote(f'run={page.run.folder}')}",
    )


def _stage_name(line: StageStatistics) -> str:
    return line.step.replace("_", " ")


def _tiles(stages: list[StageStatistics], device_hours: float | None) -> list[dict[str, str]]:
    """The numbers to see first, and from where they came."""
    masks, images = (sum(getattr(line, key) or 0 for line in stages) for key in ("masks", "images"))
    tiles = [{"title": "Masks written", "value": f"{masks:,}", "from": f"in {images:,} images"}]
    for title, key, digits in (
        ("mIoU after one click", "miou_at_1", 3),
        ("Clicks per mask", "clicks_per_mask", 2),
        ("Seconds per mask", "seconds_per_mask", 1),
    ):
        there = [(line, value) for line in stages if (value := getattr(line, key)) is not None]
        if not there:
            tiles.append({"title": title, "value": "not yet", "from": ""})
            continue
        (first, before), (last, after) = there[0], there[-1]
        source = f"from {before:.{digits}f} in stage {first.step.split('_')[0]}" if first is not last else _stage_name(first)
        tiles.append({"title": title, "value": f"{after:.{digits}f}", "from": source})
    hours = [line.seconds_per_mask * line.masks / 3600 for line in stages if line.seconds_per_mask is not None and line.masks]
    devices = f"and {device_hours:,.2g} of devices (GPUs; 1 without)" if device_hours is not None else "over all stages"
    if hours:
        tiles.append({"title": "Annotator hours", "value": f"{sum(hours):,.1f}", "from": devices})
    return tiles


def _gallery(line: StageStatistics, samples: list[Sample]) -> dict[str, Any]:
    shots: list[dict[str, Any]] = []
    for sample in samples:
        number = len(sample.record.masks)
        caption = f"{number} mask{'' if number == 1 else 's'}"
        ratio = round(sample.record.width / sample.record.height, 3)
        shots.append({"uri": data_uri(draw_sample(sample)), "caption": caption, "key": sample.record.key, "ratio": ratio})
    rows = [shots[start : start + SHOTS_PER_ROW] for start in range(0, len(shots), SHOTS_PER_ROW)]
    return {
        "name": _stage_name(line),
        "images": line.images,
        "masks": line.masks,
        "rows": [{"shots": row, "ratio": f"{sum(shot['ratio'] for shot in row):.3f}"} for row in rows],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": [step.replace("_", " ") for step in comparison.steps],
        "means": [f"{mean:.3f}" for mean in comparison.mean_ious],
        "rows": [_compared(item) for item in comparison.shown],
        "worst": [_compared(item, last_only=True) for item in comparison.worst],
        "num_objects": comparison.num_objects,
        "num_images": comparison.num_images,
        "num_better": comparison.num_better,
        "num_worse": comparison.num_worse,
        "masks_per_image": MASKS_PER_IMAGE,
        "min_area": MIN_AREA_PX,
    }


def _compared(item: ComparedObject, *, last_only: bool = False) -> dict[str, Any]:
    """Of all models that were tried, or of the last alone."""
    if last_only:
        item = replace(item, answers=item.answers[-1:], ious=item.ious[-1:])
    record = item.sample.record
    image = decode_jpeg(item.sample.jpeg, shard=item.sample.shard, key=record.key)
    target = decode_mask(item.sample, item.target)
    answers = [decode_mask(item.sample, answer) for answer in item.answers]
    window = window_around([target, *answers])
    return {
        "key": record.key,
        "gain": f"{item.gain:+.2f}" if len(item.ious) > 1 else "",
        "worse": item.gain < 0,
        "target": data_uri(draw_target(image, target, item.click_xy, window)),
        "answers": [
            {"uri": data_uri(draw_answer(image, target, answer, window)), "iou": f"{iou:.2f}"}
            for answer, iou in zip(answers, item.ious, strict=True)
        ],
    }


def _counted(stages: list[StageStatistics], counts: Callable[[StageStatistics], dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each name that any stage counted, the most frequent first; None where the stage wrote nothing yet."""
    by_stage = [counts(line) for line in stages]
    totals = {name: sum(count.get(name, 0) for count in by_stage) for name in sorted({n for c in by_stage for n in c})}
    rows: list[dict[str, Any]] = []
    for name in sorted(totals, key=lambda name: -totals[name]):
        values = [None if s.masks is None else f"{c.get(name, 0):,.10g}" for s, c in zip(stages, by_stage, strict=True)]
        rows.append({"name": name.replace("_", " "), "why": REASONS.get(name, ""), "values": values})
    return rows


def _command(folder: Path) -> str:
    """The whole cycle again with this run's resolved config, into another folder: what is done here would be passed over."""
    path, again = shlex.quote(str(folder)), shlex.quote(f"{folder}_again")
    # Hydra takes a relative --config-path for one beside its own module, and would keep a diary in outputs/.
    config = f"--config-path {path if folder.is_absolute() else '$PWD/' + path} --config-name config"
    return f"sam-cycle {config} run_dir={again} hydra.run.dir=. hydra.output_subdir=null"
