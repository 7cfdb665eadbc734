"""Figures as SVG elements of an HTML page, in the text colour of the page, so that they are readable in light and dark mode."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

INK = "#010203"
"""Colour of lines and text while a figure is drawn; the SVG has `currentColor` in its place."""

_BASE_STYLE: dict[Any, Any] = {  # matplotlib types the keys as a literal of all of them
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
}


def figure_style(name: str, settings: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the matplotlib settings of the figure `name`, which `settings` override.

    The same name always gives the same ids in the SVG.
    """
    return {**_BASE_STYLE, **settings, "svg.hashsalt": name}


def svg_element(figure: Figure, name: str, label: str) -> str:
    """Return a drawn figure as an <svg> element that takes its size from the page.

    `label` is its description for screen readers. Its ids begin with `name`, so that those of two figures differ. Call it
    within `rc_context(figure_style(name))`.
    """
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue().replace(INK, "currentColor")
    svg = re.sub(r'(?<![\w-])(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    head, _, body = svg[svg.index("<svg ") :].partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]*"', head)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box}>{body}'
