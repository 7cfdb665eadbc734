"""Figures of a data set's statistics: SVG in the text colour of the page, for light and dark mode, and PNG on white."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sam_train.shards.maintenance.statistics.measure import NUM_BINS, Statistics
from sam_train.shards.maintenance.statistics.reference import MASKS_PER_IMAGE_BINS, PREDICTED_IOU_THRESHOLD, STABILITY_THRESHOLD
from sam_train.shards.maintenance.statistics.svg_figure import INK, figure_style, svg_element

BLUE, AMBER = "#3b82f6", "#d97706"
_SMOOTH_FROM = 16
_INCHES = (5.2, 3.4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure as SVG and PNG. `name` is its file name without extension, `label` its description."""

    name: str
    label: str
    svg: str
    png: bytes


def draw_all(statistics: Statistics) -> list[Drawing]:
    """Return all figures of a data set with at least one mask."""
    figures: dict[str, tuple[str, Callable[[Axes], None]]] = {
        "mask_centres": ("Centres of masks, with all images scaled to one square", lambda axes: _centres(axes, statistics)),
        "masks_per_image": ("Share of images by number of masks", lambda axes: _masks_per_image(axes, statistics)),
        "relative_size": ("Share of masks by relative size", lambda axes: _histogram(axes, statistics, "relative_size")),
        "concavity": ("Share of masks by concavity", lambda axes: _histogram(axes, statistics, "concavity")),
        "predicted_iou": ("Share of masks by predicted IoU", lambda axes: _histogram(axes, statistics, "predicted_iou")),
        "stability_score": ("Share of masks by stability", lambda axes: _histogram(axes, statistics, "stability_score")),
    }
    return [_draw_figure(name, label, draw) for name, (label, draw) in figures.items()]


def _centres(axes: Axes, statistics: Statistics) -> None:
    centres, pooled = statistics.centres, 1
    while centres.mean() < _SMOOTH_FROM and pooled < 8:  # otherwise the few masks of each cell would look like noise
        centres = centres[::2, ::2] + centres[1::2, ::2] + centres[::2, 1::2] + centres[1::2, 1::2]
        pooled *= 2
    density = centres / centres.mean()
    image = axes.imshow(density, extent=(0, 1, 1, 0), cmap="viridis", interpolation="nearest", vmin=0)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="times the mean")
    axes.grid(visible=False)
    axes.set_xlabel("x / width")
    axes.set_ylabel("y / height")
    axes.set_title("Mask centres")


def _masks_per_image(axes: Axes, statistics: Statistics) -> None:
    shares = [100 * count / statistics.num_images for count in images_by_mask_bin(statistics).values()]
    bars = axes.bar(np.arange(len(shares)), shares, color=BLUE, width=0.7)
    axes.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=2, fontsize=9)
    axes.set_xticks(np.arange(len(shares)), [name for _, _, name in MASKS_PER_IMAGE_BINS])
    axes.set_ylim(0, 1.12 * max(shares))
    axes.set_xlabel("masks in an image")
    axes.set_ylabel("% of images")
    axes.set_title("Masks per image")


_AXES = {
    "relative_size": ("Relative mask size", "sqrt(mask area / image area)", True, None),
    "concavity": ("Concavity", "1 − mask area / area of its convex hull", False, None),
    "predicted_iou": ("Predicted IoU", "the model's own estimate", True, PREDICTED_IOU_THRESHOLD),
    "stability_score": ("Stability", "stability score", True, STABILITY_THRESHOLD),
}
"""Title, label of the x axis, True for a logarithmic y axis, the paper's threshold."""


def _histogram(axes: Axes, statistics: Statistics, name: str) -> None:
    title, label, logarithmic, threshold = _AXES[name]
    axes.set_title(title)
    mean = statistics.mean(name)
    if mean is None:
        axes.text(0.5, 0.5, "-  no mask was rated by a model", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    shares = 100 * statistics.histograms[name].reshape(NUM_BINS // 2, 2).sum(1) / statistics.histograms[name].sum()
    axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), color=BLUE, fill=True, alpha=0.85)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(min(0.5 * float(shares[shares > 0].min()), 0.1), 200)
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle=":", label=f"mean {mean:.3f}")
    if threshold is not None:
        axes.axvline(threshold, color=AMBER, linewidth=1.6, label=f"threshold of the paper, {threshold}")
    axes.legend(loc="upper left" if threshold is not None else "upper right")
    axes.set_xlim(0, 1)
    axes.set_xlabel(label)
    axes.set_ylabel("% of masks")


def images_by_mask_bin(statistics: Statistics) -> dict[str, int]:
    """Return the number of images by number of masks, in the paper's bins."""
    return {
        name: sum(images for masks, images in statistics.masks_per_image.items() if low <= masks <= (high or masks))
        for low, high, name in MASKS_PER_IMAGE_BINS
    }


def _draw_figure(name: str, label: str, draw: Callable[[Axes], None]) -> Drawing:
    png = io.BytesIO()
    with rc_context(figure_style(name, {"axes.titlesize": 10.5, "legend.fontsize": 9})):
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.subplots())
        svg = svg_element(figure, name, label)
        figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Drawing(name=name, label=label, svg=svg, png=png.getvalue())
