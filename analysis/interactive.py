"""Charts as plotly figures, for the report and for notebooks: the same curves, to be hovered."""

from __future__ import annotations

import textwrap
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .charts import Chart, Curve, Floats, Matrix, Panel, places
from .interactive_matrix import BESIDE_MATRIX, add_matrix, set_matrix_axes

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_INK, _MUTED, _GRID = "#1c2430", "#5a6675", "#e3e7ec"
_AXIS = {"showline": True, "linecolor": _MUTED, "linewidth": 1, "gridcolor": _GRID,
         "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": _MUTED,
         "tickfont": {"size": 11, "color": _MUTED}, "title_standoff": 8,
         "title_font": {"size": 12}, "automargin": False}  # fmt: skip
_SYMBOLS = {"circle": "circle", "square": "square", "diamond": "diamond",
            "triangle": "triangle-up", "cross": "x"}  # fmt: skip
_DASHES = {"solid": "solid", "dash": "7px,3px", "dot": "2px,2px"}


def interactive(chart: Chart) -> go.Figure:
    """A plotly figure of the chart; it has no width of its own, so that a page can fit it."""
    rows, columns = chart.rows, chart.columns
    matrices = isinstance(chart.panels[0], Matrix)
    subtitle = textwrap.wrap(chart.subtitle, 125)
    titles = max(panel.title.count("\n") + 1 for panel in chart.panels)
    head = 62 + 17 * len(subtitle) + 18 * titles
    panel_height = (290 if columns > 2 else 400) if matrices else 260
    height = head + 84 + panel_height * rows + 90 * (rows - 1)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_panel_title(panel.title) for panel in chart.panels],
        horizontal_spacing=BESIDE_MATRIX if matrices else 0.09,
        vertical_spacing=100 / (height - head - 84) if rows > 1 else 0,
        shared_yaxes="all" if chart.same_y else False,
    )
    for number, panel in enumerate(chart.panels):
        row, column = number // columns + 1, number % columns + 1
        if isinstance(panel, Matrix):
            add_matrix(figure, panel, row, column)
            set_matrix_axes(figure, panel, row, column, _AXIS)
            continue
        for place, curve in enumerate(panel.curves):
            if panel.form == "lines":
                _add_curve(figure, curve, panel, row, column, legend=number == 0)
            else:
                _add_whiskers(figure, panel, place, row, column, legend=number == 0)
        _set_axes(figure, panel, row, column)
    _set_layout(figure, chart, subtitle, height, head)
    figure.update_layout(showlegend=chart.has_legend)
    if matrices:
        figure.update_layout(hovermode="closest")
    return figure


def _add_curve(
    figure: go.Figure, curve: Curve, panel: Panel, row: int, column: int, legend: bool
) -> None:
    style, label = curve.style, escape(curve.label, quote=False)
    place = {"row": row, "col": column}
    if curve.low is not None and curve.high is not None:
        edge = {"x": curve.x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
                "legendgroup": label, "showlegend": False}  # fmt: skip
        figure.add_trace(go.Scatter(y=curve.low, **edge), **place)
        fill = {"fill": "tonexty", "fillcolor": _transparent(style.colour)}
        figure.add_trace(go.Scatter(y=curve.high, **edge, **fill), **place)
    figure.add_trace(
        go.Scatter(
            x=curve.x,
            y=curve.mean,
            name=label,
            legendgroup=label,
            showlegend=legend,
            mode="lines+markers",
            line={"color": style.colour, "width": 2, "dash": _DASHES[style.dash]},
            marker={"symbol": _SYMBOLS[style.marker], "size": 6, "color": style.colour},
            customdata=_details(curve),
            hovertemplate="%{y:.3g}%{customdata}",
        ),
        **place,
    )


def _add_whiskers(
    figure: go.Figure, panel: Panel, number: int, row: int, column: int, legend: bool
) -> None:
    """Bars, or points that a line joins, with their intervals as whiskers."""
    curve = panel.curves[number]
    style, label = curve.style, escape(curve.label, quote=False)
    x, width = places(panel, number)
    common = {"x": x, "y": curve.mean, "name": label, "legendgroup": label, "showlegend": legend,
              "customdata": _details(curve), "hovertemplate": "%{y:.3g}%{customdata}"}  # fmt: skip
    if curve.low is not None and curve.high is not None:
        common["error_y"] = {
            "type": "data", "symmetric": False, "array": curve.high - curve.mean,
            "arrayminus": curve.mean - curve.low, "thickness": 1.2, "width": 3,
            "color": style.colour if panel.form == "points" else _MUTED,
        }  # fmt: skip
    if panel.form == "bars":
        trace = go.Bar(width=width, marker={"color": style.colour, "opacity": 0.75}, **common)
    else:
        line = {"color": style.colour, "width": 1.2, "dash": _DASHES[style.dash]}
        marker = {"symbol": _SYMBOLS[style.marker], "size": 9, "color": style.colour}
        mode = "lines+markers" if panel.x_ticks is None else "markers"
        trace = go.Scatter(mode=mode, line=line, marker=marker, **common)
    figure.add_trace(trace, row=row, col=column)


def _details(curve: Curve) -> list[str]:
    """What hovering adds to the mean: interval and largest value."""
    details = []
    for number in range(len(curve.x)):
        text = ""
        if curve.low is not None and curve.high is not None:
            text += f"  [{curve.low[number]:.3g}, {curve.high[number]:.3g}]"
        if curve.maximum is not None:
            text += f"  largest {curve.maximum[number]:.3g}"
        details.append(text)
    return details


def _set_axes(figure: go.Figure, panel: Panel, row: int, column: int) -> None:
    line = _AXIS
    hover = "" if not panel.whole else "d"
    # Without a prefix the box that follows the mouse would show a bare number.
    prefix = panel.x_label.split(" of ")[0].split(" (")[0] + " "
    figure.update_xaxes(title_text=panel.x_label, hoverformat=hover or ".2f",
                        unifiedhovertitle_text=f"<b>{prefix}%{{x}}</b>", row=row, col=column,
                        **line)  # fmt: skip
    figure.update_yaxes(
        title_text=panel.y_label, showticklabels=True, nticks=8, row=row, col=column, **line
    )
    if panel.x_ticks is not None:
        numbers = list(range(len(panel.x_ticks)))
        words = [_markup(word) for word in panel.x_ticks]
        figure.update_xaxes(tickvals=numbers, ticktext=words, range=[-0.5, len(words) - 0.5],
                            unifiedhovertitle_text="", row=row, col=column)  # fmt: skip
    if panel.y_range is not None:
        figure.update_yaxes(range=list(panel.y_range), row=row, col=column)
    if panel.logarithmic:
        ticks = _one_two_five(np.concatenate([curve.mean for curve in panel.curves]))
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks],
                            row=row, col=column)  # fmt: skip
    if panel.reference is not None:
        figure.add_hline(panel.reference, line={"color": _MUTED, "width": 1.2}, layer="below",
                         row=row, col=column)  # fmt: skip


def _set_layout(
    figure: go.Figure, chart: Chart, subtitle: list[str], height: int, head: int
) -> None:
    figure.update_annotations(
        font={"size": 12.5, "color": _INK}, xanchor="left", align="left", yshift=4
    )
    for annotation, axis in zip(figure.layout.annotations, figure.select_xaxes(), strict=False):
        annotation.x = axis.domain[0]
    figure.update_layout(
        template="none",
        title={"text": f"<b>{_markup(chart.title)}</b>", "x": 0, "xref": "paper", "xanchor": "left",
               "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 8, "l": -60},
               "font": {"size": 18},
               "subtitle": {"text": _markup("\n".join(subtitle)),
                            "font": {"size": 12, "color": _MUTED}}},
        font={"family": FONT, "size": 12, "color": _INK},
        height=height,
        margin={"t": head, "b": 84, "l": 60, "r": 12},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container",
                "yanchor": "bottom", "font": {"size": 12.5}},
        hovermode="x unified",
        hoverlabel={"font": {"size": 12}},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )  # fmt: skip


def _one_two_five(values: Floats) -> list[float]:
    """Ticks 1, 2, 5 of every decade that the positive values touch."""
    positive = values[np.isfinite(values) & (values > 0)]
    decades = range(int(np.floor(np.log10(positive.min()))), int(np.log10(positive.max())) + 2)
    return [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


def _panel_title(text: str) -> str:
    first, *rest = text.split("\n")
    return "<br>".join([f"<b>{_markup(first)}</b>", *map(_markup, rest)])


def _markup(text: str) -> str:
    return escape(text, quote=False).replace("\n", "<br>")
