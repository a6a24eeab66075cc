"""Charts as PNG files, through matplotlib and without any global state.

One figure is about 2000 pixels wide, on white, so that it can go straight into a paper or a README.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .charts import Chart, Curve, Panel

_INK, _MUTED, _GRID = "#1c2430", "#5a6675", "#e3e7ec"
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "X"}
_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.2, 1.6))}
_DPI = 200
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.parse_math": False,  # names of models and stores may hold a dollar sign
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.linewidth": 0.7,
}


def draw(chart: Chart) -> Figure:
    """A matplotlib figure of the chart, for notebooks and for :func:`save_png`."""
    with rc_context(_RC):
        columns = 3 if len(chart.panels) == 3 else min(len(chart.panels), 2)
        rows = -(-len(chart.panels) // columns)
        subtitle = textwrap.wrap(chart.subtitle, 150)
        titles = max(panel.title.count("\n") + 1 for panel in chart.panels)
        head = 0.58 + 0.17 * titles + 0.15 * len(subtitle)
        foot = 0.55 + 0.2 * _legend_rows_below(chart)
        height = head + foot + 2.15 * rows + 0.75 * (rows - 1)
        figure = Figure(figsize=(10.0, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        shared: Literal["all", "none"] = "all" if chart.same_y else "none"
        axes = figure.subplots(rows, columns, squeeze=False, sharey=shared)
        for panel, axis in zip(chart.panels, axes.flat, strict=False):
            _draw_panel(panel, axis)
        for axis in axes.flat[len(chart.panels) :]:
            axis.set_visible(False)
        _write_head(figure, chart, subtitle, height)
        _add_legend(figure, chart, height)
        figure.subplots_adjust(left=0.07, right=0.985, top=1 - head / height, bottom=foot / height,
                               wspace=0.2 if columns == 2 else 0.26, hspace=0.35)  # fmt: skip
    return figure


def save_png(chart: Chart, path: Path) -> None:
    """Write the chart as a PNG file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        draw(chart).savefig(path, dpi=_DPI, metadata={"Title": chart.title})


def _write_head(figure: Figure, chart: Chart, subtitle: list[str], height: float) -> None:
    figure.text(0.012, 1 - 0.14 / height, chart.title, fontsize=12.5, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.42 / height, "\n".join(subtitle), fontsize=8, color=_MUTED, va="top")


def _add_legend(figure: Figure, chart: Chart, height: float) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    below = _legend_rows_below(chart)
    columns = -(-len(labels) // below) if below else len(labels)
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 2.6,
                             "columnspacing": 1.4, "ncols": columns}  # fmt: skip
    if below:
        corner = (0.05, 0.02 / height)
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=corner, **style)
    else:
        corner = (0.99, 1 - 0.08 / height)
        figure.legend(handles, labels, loc="upper right", bbox_to_anchor=corner, **style)


def _legend_rows_below(chart: Chart) -> int:
    """Rows of a legend under the panels; 0 where it fits beside the title."""
    labels = [curve.label for curve in chart.panels[0].curves]
    width = sum(len(label) + 8 for label in labels)
    if 1.6 * len(chart.title) + width < 135:
        return 0
    return -(-len(labels) // max(1, 130 // (max(len(label) for label in labels) + 8)))


def _draw_panel(panel: Panel, axis: Axes) -> None:
    axis.set_axisbelow(True)
    axis.grid(color=_GRID, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=2.5, width=0.7, labelsize=8, labelleft=True)
    if panel.reference is not None:
        axis.axhline(panel.reference, color=_MUTED, linewidth=0.9, zorder=1.5)
    for curve in panel.curves:
        _draw_curve(curve, axis)
    if panel.logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=12))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    if panel.y_range is not None:
        axis.set_ylim(panel.y_range)
    if all(np.array_equal(curve.x, np.round(curve.x)) for curve in panel.curves):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.02)
    axis.set_xlabel(panel.x_label, fontsize=8.5)
    axis.set_ylabel(panel.y_label, fontsize=8.5)
    axis.set_title(panel.title, loc="left", fontsize=8.5, fontweight="bold", color=_INK)


def _draw_curve(curve: Curve, axis: Axes) -> None:
    style = curve.style
    if curve.low is not None and curve.high is not None:
        axis.fill_between(
            curve.x, curve.low, curve.high, color=style.colour, alpha=0.2, linewidth=0
        )
    axis.plot(
        curve.x,
        curve.mean,
        color=style.colour,
        linestyle=_DASHES[style.dash],
        linewidth=1.5,
        marker=_MARKERS[style.marker],
        markersize=3.2,
        markeredgewidth=0,
        label=curve.label,
    )
