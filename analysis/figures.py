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

from .charts import Chart, Curve, Matrix, Panel, places
from .figure_matrix import draw_matrix

_INK, _MUTED, _GRID = "#1c2430", "#5a6675", "#e3e7ec"
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "X"}
_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.2, 1.6))}
_DPI = 200

#: Where axes begin and end, as shares of the width; colour bars need room on the right.
_SIDES, _MATRIX_SIDES = (0.07, 0.985), (0.06, 0.925)
#: Room between matrices, as a share of one's width.
_BESIDE_MATRIX = 0.5
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
        rows, columns = chart.rows, _columns(chart)
        subtitle = textwrap.wrap(chart.subtitle, 150)
        titles = max(panel.title.count("\n") + 1 for panel in chart.panels)
        head = 0.58 + 0.17 * titles + 0.15 * len(subtitle)
        foot = 0.55 + 0.2 * _legend_rows_below(chart)
        matrices = isinstance(chart.panels[0], Matrix)
        panel = _matrix_width(columns) if matrices else 2.15
        between = 0.95 if matrices else 0.75
        height = head + foot + panel * rows + between * (rows - 1)
        figure = Figure(figsize=(10.0, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        shared: Literal["all", "none"] = "all" if chart.same_y else "none"
        axes = figure.subplots(rows, columns, squeeze=False, sharey=shared)
        used = axes[:, : chart.columns].flat
        for axis in axes.flat:
            axis.set_visible(False)
        for one, axis in zip(chart.panels, used, strict=False):
            axis.set_visible(True)
            if isinstance(one, Matrix):
                draw_matrix(one, axis)
            else:
                _draw_panel(one, axis)
        _write_head(figure, chart, subtitle, height)
        _add_legend(figure, chart, height)
        beside = _BESIDE_MATRIX if matrices else 0.2 if columns == 2 else 0.26
        left, right = _MATRIX_SIDES if matrices else _SIDES
        figure.subplots_adjust(left=left, right=right, top=1 - head / height,
                               bottom=foot / height, wspace=beside,
                               hspace=between / panel)  # fmt: skip
    return figure


def _matrix_width(columns: int) -> float:
    """Inches; matrices are square."""
    left, right = _MATRIX_SIDES
    return 10 * (right - left) / (columns + _BESIDE_MATRIX * (columns - 1))


def _columns(chart: Chart) -> int:
    """Columns of axes; a lone matrix takes no more than half of the width."""
    return max(chart.columns, 2) if isinstance(chart.panels[0], Matrix) else chart.columns


def save_png(chart: Chart, path: Path) -> None:
    """Write the chart as a PNG file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        draw(chart).savefig(path, dpi=_DPI, metadata={"Title": chart.title})


def _write_head(figure: Figure, chart: Chart, subtitle: list[str], height: float) -> None:
    figure.text(0.012, 1 - 0.14 / height, chart.title, fontsize=12.5, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.42 / height, "\n".join(subtitle), fontsize=8, color=_MUTED, va="top")


def _add_legend(figure: Figure, chart: Chart, height: float) -> None:
    if not chart.has_legend:
        return
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
    if not chart.has_legend or isinstance(chart.panels[0], Matrix):
        return 0
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
    for number, curve in enumerate(panel.curves):
        if panel.form == "lines":
            _draw_curve(curve, axis)
        else:
            _draw_whiskers(curve, panel, number, axis)
    if panel.logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=12))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    if panel.y_range is not None:
        axis.set_ylim(panel.y_range)
    if panel.x_ticks is not None:
        axis.set_xticks(range(len(panel.x_ticks)), panel.x_ticks)
        axis.set_xlim(-0.5, len(panel.x_ticks) - 0.5)
    elif panel.whole:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.x_ticks is None:
        axis.margins(x=0.02 if panel.form != "points" else 0.08)
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


def _draw_whiskers(curve: Curve, panel: Panel, number: int, axis: Axes) -> None:
    """Bars, or points that a thin line joins, with their intervals as whiskers."""
    style = curve.style
    x, width = places(panel, number)
    if panel.form == "bars":
        axis.bar(x, curve.mean, width, color=style.colour, alpha=0.75, label=curve.label)
    else:
        joined = _DASHES[style.dash] if panel.x_ticks is None else "none"
        axis.plot(x, curve.mean, color=style.colour, linestyle=joined, linewidth=0.9,
                  marker=_MARKERS[style.marker], markersize=5, markeredgewidth=0,
                  label=curve.label)  # fmt: skip
    if curve.low is None or curve.high is None:
        return
    known = np.isfinite(curve.low) & np.isfinite(curve.high)
    colour = _INK if panel.form == "bars" else style.colour
    axis.vlines(x[known], curve.low[known], curve.high[known], color=colour, linewidth=1.0)
