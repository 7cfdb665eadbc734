"""overview.png, a loop at a glance: an image of each stage, the same clicks before and after, and seconds per mask."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_engine.report.comparison import ComparedObject, Comparison
from data_engine.report.mask_images import decode_mask, draw_click, draw_prediction, draw_sample, window_around
from data_engine.report.stage_statistics import StageStatistics
from sam_train.shards import Sample, decode_jpeg

MAX_STAGES = 4
NUM_OBJECTS = 2
"""Objects shown before and after: those with the largest gain and with the median one."""
AMBER = "#f59e0b"


def draw_overview(
    stages: Sequence[StageStatistics], galleries: Sequence[Sequence[Sample]], comparison: Comparison | None
) -> bytes:
    """Return a PNG: an image of each stage with its masks, below two clicks before and after, and at the end seconds per mask.

    Without a second promoted model there is nothing to compare, and the PNG has one row.
    At most the last MAX_STAGES stages with images are shown. Returns b"" if no stage has images yet.
    """
    shown = [(stage, gallery) for stage, gallery in zip(stages, galleries, strict=True) if gallery][-MAX_STAGES:]
    if not shown:
        return b""
    rows = [[(draw_sample(gallery[len(gallery) // 2]), _stage_title(stage)) for stage, gallery in shown]]
    if predictions := _prediction_images(comparison):
        rows.append(predictions)
    heights = (1.0, 0.85)[: len(rows)]
    style = {"font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "text.parse_math": False}
    with rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(12, 3.35 * sum(heights)), dpi=110, layout="constrained", facecolor="white")
        parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, images in zip(parts, rows, strict=True):
            widths = [1.0] * len(images) + [1.3] * (images is rows[-1])  # the last row ends with the bars
            axes = part.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
            for axis, (image, title) in zip(axes, images, strict=False):
                _show(axis, image, title)
        _draw_seconds(axes[-1], [stage for stage, _ in shown])
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _prediction_images(comparison: Comparison | None) -> list[tuple[np.ndarray, str]]:
    """Return the predictions for each shown object, before and after, with titles; none if there is only one promoted model."""
    if comparison is None or len(comparison.steps) < 2 or not comparison.shown:
        return []
    images = []
    for item in [comparison.shown[0], comparison.shown[len(comparison.shown) // 2]][:NUM_OBJECTS]:
        before, after = _predictions(item)
        images += [(before, f"first model, one click: IoU {item.ious[0]:.2f}"), (after, f"last model: IoU {item.ious[-1]:.2f}")]
    return images


def _draw_seconds(axis: Axes, stages: Sequence[StageStatistics]) -> None:
    annotated = [stage for stage in stages if stage.seconds_per_mask is not None]
    bars = axis.bar(range(len(annotated)), [stage.seconds_per_mask or 0.0 for stage in annotated], color=AMBER, width=0.6)
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.set_xticks(range(len(annotated)), [stage.step.split("_")[0] for stage in annotated])
    axis.set_title("seconds of annotators per mask, by stage")
    axis.spines[["top", "right"]].set_visible(False)


def _predictions(item: ComparedObject) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions of the first and the last model, each with the click that both received."""
    record = item.sample.record
    image = decode_jpeg(item.sample.jpeg, shard=item.sample.shard, key=record.key)
    target = decode_mask(item.sample, item.target)
    masks = [decode_mask(item.sample, prediction) for prediction in (item.predictions[0], item.predictions[-1])]
    window = window_around([target, *masks])
    before, after = (draw_prediction(image, target, mask, window) for mask in masks)
    for thumbnail in (before, after):
        draw_click(thumbnail, item.click_xy, window)
    return before, after


def _stage_title(stage: StageStatistics) -> str:
    quality = f", IoU {stage.mean_iou:.2f}" if stage.mean_iou is not None else ""
    return f"{stage.step.replace('_', ' ')}\n{stage.seconds_per_mask or 0:.1f} s / mask{quality}"


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title)
    axis.axis("off")
