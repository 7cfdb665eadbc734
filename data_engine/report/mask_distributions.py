"""Distributions of the masks of each stage: the paper's figure 6, figures 5 and 7 in one dimension, one line per stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from data_engine.report.curves import figure_svg
from sam_train.shards.maintenance.statistics.measure import NUM_BINS, Statistics, measure_shard
from sam_train.shards.maintenance.statistics.reference import MASKS_PER_IMAGE_BINS
from sam_train.subsets import evenly_spaced_indices

MAX_SHARDS = 40
"""Shards that are measured per stage, evenly spaced if there are more."""
BINS_SHOWN = 25
_HISTOGRAMS = (
    ("relative_size", "Relative size of masks", "sqrt(mask area / image area)"),
    ("concavity", "Concavity of masks", "1 − mask area / area of its convex hull"),
)


def measure_stage(shards: Sequence[Path]) -> Statistics:
    """Return the statistics of the masks in up to MAX_SHARDS of a stage's shards. Their JPEGs are not read."""
    statistics = Statistics()
    for index in evenly_spaced_indices(len(shards), MAX_SHARDS, at="ends"):
        statistics.add(measure_shard(shards[index], lambda _: None))
    return statistics


def distributions_svg(names: Sequence[str], stages: Sequence[Statistics]) -> str:
    """Return the figure of masks per image, relative size and concavity by stage, empty if no stage wrote a mask."""
    with_masks = [(name, stage) for name, stage in zip(names, stages, strict=True) if stage.num_masks]
    if not with_masks:
        return ""
    label = "Masks per image, their relative size and concavity, by stage"
    return figure_svg("data", label, (13.0, 3.4), 3, lambda axes: _draw(axes, with_masks))


def _draw(axes: Sequence[Axes], stages: Sequence[tuple[str, Statistics]]) -> None:
    colours = colormaps["viridis"](np.linspace(0.15, 0.85, len(stages)))
    for number, ((name, stage), colour) in enumerate(zip(stages, colours, strict=True)):
        shares = [100 * _images_between(stage, first, last) / stage.num_images for first, last, _ in MASKS_PER_IMAGE_BINS]
        width = 0.8 / len(stages)
        axes[0].bar(np.arange(len(shares)) + (number + 0.5) * width - 0.4, shares, width=width, color=colour, label=name)
        for axis, (measure, _, _) in zip(axes[1:], _HISTOGRAMS, strict=True):
            counts = stage.histograms[measure].reshape(BINS_SHOWN, NUM_BINS // BINS_SHOWN).sum(1)
            centres = (np.arange(BINS_SHOWN) + 0.5) / BINS_SHOWN
            axis.plot(centres, 100 * counts / stage.num_masks, color=colour, linewidth=1.8, label=name)
    axes[0].set_xticks(np.arange(len(MASKS_PER_IMAGE_BINS)), [name for _, _, name in MASKS_PER_IMAGE_BINS], fontsize=9)
    axes[0].set_title("% of images, by number of masks")
    axes[0].legend(fontsize=8)
    for axis, (_, title, meaning) in zip(axes[1:], _HISTOGRAMS, strict=True):
        axis.set_title(f"{title}, % of masks")
        axis.set_xlabel(meaning)
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)


def _images_between(stage: Statistics, first: int, last: int | None) -> int:
    """Return the number of images with `first` to `last` masks."""
    return sum(images for masks, images in stage.masks_per_image.items() if masks >= first and (last is None or masks <= last))
