"""overview.png, a loop at a glance: an image of each stage, the same clicks before and after, and seconds per mask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

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
    """Return a PNG: above an image of each stage with its masks, below two clicks before and after, and seconds per mask.

    At most the last MAX_STAGES stages with images are shown. Returns b"" if no stage has images yet.
    """
    shown = [(stage, gallery) for stage, gallery in zip(stages, galleries, strict=True) if gallery][-MAX_STAGES:]
    if not shown:
        return b""
    style = {"font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "text.parse_math": False}
    with rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(12, 6.2), dpi=110, layout="constrained", facecolor="white")
        above, below = cast("tuple[SubFigure, SubFigure]", figure.subfigures(2, 1, height_ratios=(1, 0.85)))
        for axis, (stage, gallery) in zip(above.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _show(axis, draw_sample(gallery[len(gallery) // 2]), _stage_title(stage))
        _draw_lower_row(list(below.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.3))), [stage for stage, _ in shown], comparison)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_lower_row(axes: Sequence[Axes], stages: Sequence[StageStatistics], comparison: Comparison | None) -> None:
    for axis in axes[:4]:
        axis.axis("off")
    if comparison is not None and len(comparison.steps) > 1 and comparison.shown:
        chosen = [comparison.shown[0], comparison.shown[len(comparison.shown) // 2]]
        for number, item in enumerate(chosen[:NUM_OBJECTS]):
            before, after = _predictions(item)
            _show(axes[2 * number], before, f"first model, one click: IoU {item.ious[0]:.2f}")
            _show(axes[2 * number + 1], after, f"last model: IoU {item.ious[-1]:.2f}")
    annotated = [stage for stage in stages if stage.seconds_per_mask is not None]
    bars = axes[4].bar(range(len(annotated)), [stage.seconds_per_mask or 0.0 for stage in annotated], color=AMBER, width=0.6)
    axes[4].bar_label(bars, fmt="%.1f", padding=2)
    axes[4].set_xticks(range(len(annotated)), [stage.step.split("_")[0] for stage in annotated])
    axes[4].set_title("seconds of annotators per mask, by stage")
    axes[4].spines[["top", "right"]].set_visible(False)


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
    return f"{stage.step.replace('_', ' ')}: {stage.seconds_per_mask or 0:.1f} s / mask{quality}"


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title)
    axis.axis("off")
