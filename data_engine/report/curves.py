"""The figures of a loop: held-out quality, annotation cost and training curves, as SVG elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_engine.report.stage_statistics import StageStatistics
from data_engine.report.training_log import Series, concatenate, smooth
from sam_train.shards.maintenance.statistics.svg_figure import INK, figure_style, svg_element

BLUE, AMBER, GREEN = "#3b82f6", "#f59e0b", "#10b981"
MIN_ROWS_TO_SMOOTH = 40
MAX_NAMED_STAGES = 6
MIN_NAME_WIDTH = 0.2
"""Share of the axis that the name of a stage needs; if two stages begin closer to each other, all are numbered."""


def quality_svg(stages: Sequence[StageStatistics]) -> str:
    """Return the figure of held-out mIoU after 1, 3 and 5 clicks by stage, empty if no model was evaluated."""
    if not any(stage.miou_at_1 is not None or stage.candidate for stage in stages):
        return ""
    label = "Held-out mIoU after 1, 3 and 5 clicks, by stage"
    return figure_svg("quality", label, (6.4, 3.6), 1, lambda axes: _draw_quality(axes[0], stages))


def cost_svg(stages: Sequence[StageStatistics]) -> str:
    """Return the figure of clicks and seconds per mask by stage, empty if neither was counted."""
    if not any(stage.clicks_per_mask is not None or stage.seconds_per_mask is not None for stage in stages):
        return ""
    return figure_svg("cost", "Clicks and seconds per mask, by stage", (6.4, 3.6), 2, lambda axes: _draw_cost(axes, stages))


def training_svg(steps: Sequence[str], logs: list[dict[str, Series]]) -> str:
    """Return the figure of loss and IoU over the training steps of all stages, empty without a log.

    IoU is drawn for the first and the last round of prompts.
    """
    names = ("train/loss", "train/iou_first_round", "train/iou_last_round")
    if not any(name in log for log in logs for name in names):
        return ""
    label = "Training loss and IoU over training steps"
    return figure_svg("training", label, (13.0, 3.4), 2, lambda axes: _draw_training(axes, steps, logs))


def _draw_quality(axis: Axes, stages: Sequence[StageStatistics]) -> None:
    x = np.arange(len(stages))
    # A model that was not promoted is drawn as well; otherwise the line would not show that it was trained.
    rejected = [stage.candidate if stage.promoted is False and stage.candidate else {} for stage in stages]
    for clicks, colour in ((1, BLUE), (3, AMBER), (5, GREEN)):
        key = f"miou_at_{clicks}"
        values = _to_array([getattr(stage, key) for stage in stages])
        label = "after 1 click" if clicks == 1 else f"after {clicks} clicks"
        axis.plot(x, values, "-o", color=colour, label=label, linewidth=2, markersize=5)
        if any(rejected):
            rejected_values = _to_array([means.get(key) for means in rejected])
            axis.plot(x, rejected_values, "o", markerfacecolor="none", markeredgecolor=colour, markersize=7)
    axis.set_ylim(0, 1)
    axis.set_title("Held-out mIoU of the model in use" + (" (rings: trained, not promoted)" if any(rejected) else ""))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=3)
    _label_stages(axis, stages)


def _draw_cost(axes: Sequence[Axes], stages: Sequence[StageStatistics]) -> None:
    for axis, key, colour in zip(axes, ("clicks_per_mask", "seconds_per_mask"), (BLUE, AMBER), strict=True):
        values = [getattr(stage, key) for stage in stages]
        bars = axis.bar(np.arange(len(stages)), np.nan_to_num(_to_array(values)), color=colour, width=0.6)
        missing = ["–" if stage.left_out or stage.stage == "start" else "not yet" for stage in stages]
        labels = [text if value is None else f"{value:.2f}" for value, text in zip(values, missing, strict=True)]
        axis.bar_label(bars, labels, padding=2, fontsize=8)
        axis.set_ylim(0, 1.15 * max([value for value in values if value] or [1.0]))
        axis.set_title(key.replace("_", " ").capitalize())
        _label_stages(axis, stages, short=True)


def _draw_training(axes: Sequence[Axes], steps: Sequence[str], logs: list[dict[str, Series]]) -> None:
    curves = (
        (axes[0], "train/loss", AMBER, "loss"),
        (axes[1], "train/iou_first_round", BLUE, "IoU after the first prompt"),
        (axes[1], "train/iou_last_round", GREEN, "IoU after the last correction"),
    )
    for axis, name, colour, label in curves:
        for index, series in enumerate(concatenate(logs, name)[0]):
            _plot_series(axis, series, colour, label if index == 0 else "_no_legend")
    _, starts = concatenate(logs, "train/loss")
    for axis, title in zip(axes, ("Training loss", "IoU on training masks"), strict=True):
        axis.set_title(title, pad=18)
        axis.set_xlabel("training steps of all stages, concatenated")
        axis.margins(x=0.01)
        trained = [(number, step, at) for number, (step, at, log) in enumerate(zip(steps, starts, logs, strict=True), 1) if log]
        name_width = np.ptp(axis.get_xlim()) * MIN_NAME_WIDTH
        crowded = any(after - before < name_width for (*_, before), (*_, after) in pairwise(trained))
        for number, step, start in trained:
            axis.axvline(start, color=INK, alpha=0.25, linewidth=0.8)
            _label_above(axis, start, str(number) if crowded else _stage_label(step))
    axes[1].set_ylim(0, 1)
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(loc="lower right")


def _label_above(axis: Axes, x: float, name: str) -> None:
    coordinates = ("data", "axes fraction")
    axis.annotate(name, (x, 1), xycoords=coordinates, xytext=(2, 3), textcoords="offset points", fontsize=7.5, alpha=0.75)


def _plot_series(axis: Axes, series: Series, colour: str, label: str) -> None:
    if len(series.values) < MIN_ROWS_TO_SMOOTH:
        axis.plot(series.steps, series.values, color=colour, label=label, linewidth=1.6)
        return
    axis.plot(series.steps, series.values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(series.steps, smooth(series.values, len(series.values) // 15), color=colour, label=label, linewidth=1.8)


def _label_stages(axis: Axes, stages: Sequence[StageStatistics], *, short: bool = False) -> None:
    named = len(stages) <= MAX_NAMED_STAGES and not short
    labels = [_stage_label(stage.step).replace(" ", "\n", 2) if named else str(i) for i, stage in enumerate(stages, 1)]
    axis.set_xticks(np.arange(len(stages)), labels, fontsize=9)
    axis.set_xlim(-0.5, len(stages) - 0.5)
    if not named:
        axis.set_xlabel("stage")


def _stage_label(step: str) -> str:
    return step.replace("_", " ")


def _to_array(values: Sequence[float | None]) -> np.ndarray:
    """Return the values as float64, NaN for None, which is not drawn."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def figure_svg(name: str, label: str, inches: tuple[float, float], num_axes: int, draw: Callable[[Sequence[Axes]], None]) -> str:
    """Draw a row of `num_axes` plots with `draw` and return it as an <svg> element. `name` prefixes its ids."""
    settings = {"axes.formatter.useoffset": False, "text.parse_math": False}  # stage names from a config are not formulas
    with rc_context(figure_style(name, settings)):
        figure = Figure(figsize=inches, layout="constrained")
        draw(list(np.atleast_1d(figure.subplots(1, num_axes))))
        return svg_element(figure, name, label)
