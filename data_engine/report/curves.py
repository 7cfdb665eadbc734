"""The figures of a run, as SVG that takes its ink from the page, so that they are readable in light and in dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_engine.report.stage_statistics import StageStatistics
from data_engine.report.training_log import Series, concatenate, smooth

INK = "#010203"  # stands for the page's text colour until the SVG is written
BLUE, AMBER, GREEN = "#3b82f6", "#f59e0b", "#10b981"
SMOOTH_FROM_ROWS = 40
MAX_NAMED_STAGES = 6
ROOM_FOR_A_NAME = 0.2  # of the axis; stages that begin closer to each other are numbered
STYLE: dict[Any, Any] = {  # matplotlib's own type of the keys is a list of all of them
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,  # names come from a config and are no formulas
}


def quality_svg(stages: Sequence[StageStatistics]) -> str:
    """Held-out mIoU after 1, 3 and 5 clicks by stage; empty when nothing was evaluated."""
    if not any(stage.miou_at_1 is not None or stage.candidate for stage in stages):
        return ""
    label = "Held-out mIoU after 1, 3 and 5 clicks, by stage"
    return figure_svg("quality", label, (6.4, 3.6), 1, lambda axes: _quality(axes[0], stages))


def cost_svg(stages: Sequence[StageStatistics]) -> str:
    """Clicks and seconds per mask by stage; empty when nothing was counted."""
    if not any(stage.clicks_per_mask is not None or stage.seconds_per_mask is not None for stage in stages):
        return ""
    return figure_svg("cost", "Clicks and seconds for a mask, by stage", (6.4, 3.6), 2, lambda axes: _cost(axes, stages))


def training_svg(steps: Sequence[str], logs: list[dict[str, Series]]) -> str:
    """Loss, and IoU in the first and last round of prompting, over the steps of all trainings; empty without a log."""
    names = ("train/loss", "train/iou_first_round", "train/iou_last_round")
    if not any(name in log for log in logs for name in names):
        return ""
    return figure_svg("training", "Training loss and IoU over steps", (13.0, 3.4), 2, lambda axes: _training(axes, steps, logs))


def _quality(axis: Axes, stages: Sequence[StageStatistics]) -> None:
    x = np.arange(len(stages))
    # A model that was not better stays out of use; its score is shown, or the line would hide the attempt.
    rejected = [line.candidate if line.promoted is False and line.candidate else {} for line in stages]
    for clicks, colour in ((1, BLUE), (3, AMBER), (5, GREEN)):
        key = f"miou_at_{clicks}"
        values = _or_nan([getattr(line, key) for line in stages])
        label = "after 1 click" if clicks == 1 else f"after {clicks} clicks"
        axis.plot(x, values, "-o", color=colour, label=label, linewidth=2, markersize=5)
        if any(rejected):
            tried = _or_nan([means.get(key) for means in rejected])
            axis.plot(x, tried, "o", markerfacecolor="none", markeredgecolor=colour, markersize=7)
    axis.set_ylim(0, 1)
    axis.set_title("Held-out mIoU of the model in use" + (" (rings: trained, not better)" if any(rejected) else ""))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=3)
    _name_stages(axis, stages)


def _cost(axes: Sequence[Axes], stages: Sequence[StageStatistics]) -> None:
    for axis, key, colour in zip(axes, ("clicks_per_mask", "seconds_per_mask"), (BLUE, AMBER), strict=True):
        values = [getattr(stage, key) for stage in stages]
        bars = axis.bar(np.arange(len(stages)), np.nan_to_num(_or_nan(values)), color=colour, width=0.6)
        absent = ["–" if stage.left_out or stage.stage == "start" else "not yet" for stage in stages]
        labels = [why if value is None else f"{value:.2f}" for value, why in zip(values, absent, strict=True)]
        axis.bar_label(bars, labels, padding=2, fontsize=8)
        axis.set_ylim(0, 1.15 * max([value for value in values if value] or [1.0]))
        axis.set_title(key.replace("_", " ").capitalize())
        _name_stages(axis, stages, short=True)


def _training(axes: Sequence[Axes], steps: Sequence[str], logs: list[dict[str, Series]]) -> None:
    curves = (
        (axes[0], "train/loss", AMBER, "loss"),
        (axes[1], "train/iou_first_round", BLUE, "IoU after the first prompt"),
        (axes[1], "train/iou_last_round", GREEN, "IoU after the last correction"),
    )
    for axis, name, colour, label in curves:
        for index, series in enumerate(concatenate(logs, name)[0]):
            _plot_series(axis, series, colour, label if index == 0 else "_again")
    _, starts = concatenate(logs, "train/loss")
    for axis, title in zip(axes, ("Training loss", "IoU on training masks"), strict=True):
        axis.set_title(title, pad=18)
        axis.set_xlabel("training steps, all stages one after another")
        axis.margins(x=0.01)
        trained = [(number, step, at) for number, (step, at, log) in enumerate(zip(steps, starts, logs, strict=True), 1) if log]
        room = np.ptp(axis.get_xlim()) * ROOM_FOR_A_NAME
        crowded = any(after - before < room for (*_, before), (*_, after) in pairwise(trained))
        for number, step, start in trained:
            axis.axvline(start, color=INK, alpha=0.25, linewidth=0.8)
            _name_above(axis, start, str(number) if crowded else _stage_label(step))
    axes[1].set_ylim(0, 1)
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(loc="lower right")


def _name_above(axis: Axes, x: float, name: str) -> None:
    coordinates = ("data", "axes fraction")
    axis.annotate(name, (x, 1), xycoords=coordinates, xytext=(2, 3), textcoords="offset points", fontsize=7.5, alpha=0.75)


def _plot_series(axis: Axes, series: Series, colour: str, label: str) -> None:
    if len(series.values) < SMOOTH_FROM_ROWS:
        axis.plot(series.steps, series.values, color=colour, label=label, linewidth=1.6)
        return
    axis.plot(series.steps, series.values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(series.steps, smooth(series.values, len(series.values) // 15), color=colour, label=label, linewidth=1.8)


def _name_stages(axis: Axes, stages: Sequence[StageStatistics], *, short: bool = False) -> None:
    named = len(stages) <= MAX_NAMED_STAGES and not short
    labels = [_stage_label(stage.step).replace(" ", "\n", 2) if named else str(i) for i, stage in enumerate(stages, 1)]
    axis.set_xticks(np.arange(len(stages)), labels, fontsize=9)
    axis.set_xlim(-0.5, len(stages) - 0.5)
    if not named:
        axis.set_xlabel("stage")


def _stage_label(step: str) -> str:
    return step.replace("_", " ")


def _or_nan(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def figure_svg(name: str, label: str, inches: tuple[float, float], num_axes: int, draw: Callable[[Sequence[Axes]], None]) -> str:
    """Draw and give the <svg> element: no size of its own and no ids that another figure has too."""
    stream = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(list(np.atleast_1d(figure.subplots(1, num_axes))))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    drawn = stream.getvalue().replace(INK, "currentColor")
    drawn = re.sub(r'(?<![\w-])(id="|url\(#|href="#)', rf"\g<1>{name}-", drawn)
    head, _, body = drawn[drawn.index("<svg ") :].partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', head)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box}>{body}'
