"""Heat maps as plotly figures, with every cell's numbers on hover."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .charts import Matrix

#: Room between matrices, as a share of the figure's width; a colour bar stands in it.
BESIDE_MATRIX = 0.14


def add_matrix(figure: go.Figure, matrix: Matrix, row: int, column: int) -> None:
    """Add a heat map and its colour bar to one place of a figure."""
    across, down = (next(iter(select(row=row, col=column))).domain
                    for select in (figure.select_xaxes, figure.select_yaxes))  # fmt: skip
    shown = [f"{_word(matrix.y_label)} %{{y}} → {_word(matrix.x_label)} %{{x}}",
             f"<b>%{{z:.3~g}}</b> {escape(matrix.value_label, quote=False)}"]  # fmt: skip
    shown += [
        f"{escape(name, quote=False)} %{{customdata[{number}]:.3~g}}"
        for number, (name, _) in enumerate(matrix.details)
    ]
    trace = go.Heatmap(
        x=_columns(matrix),
        y=matrix.y,
        z=matrix.values,
        zmin=matrix.limits[0],
        zmax=matrix.limits[1],
        colorscale="Viridis",
        hoverongaps=False,
        customdata=_stacked(matrix),
        hovertemplate="<br>".join(shown) + "<extra></extra>",
        colorbar={
            "x": across[1] + 0.008, "xanchor": "left", "y": sum(down) / 2,
            "len": down[1] - down[0], "thickness": 10, "outlinewidth": 0,
            "title": {"text": escape(matrix.bar_label, quote=False), "side": "right",
                      "font": {"size": 11}},
            "tickfont": {"size": 10}, "nticks": 6,
        },
    )  # fmt: skip
    figure.add_trace(trace, row=row, col=column)


def set_matrix_axes(
    figure: go.Figure, matrix: Matrix, row: int, column: int, style: Mapping[str, Any]
) -> None:
    """Label the axes of a heat map; row 0 is at the top."""
    plain = {**style, "showgrid": False, "nticks": 8, "tickformat": "d"}
    across: dict[str, Any] = dict(plain)
    if matrix.x_ticks is not None:
        across |= {"type": "category", "nticks": 0, "tickangle": -90, "tickfont": {"size": 9}}
        across.pop("tickformat")
    figure.update_xaxes(title_text=matrix.x_label, row=row, col=column, **across)
    figure.update_yaxes(
        title_text=matrix.y_label, autorange="reversed", row=row, col=column, **plain
    )


def _columns(matrix: Matrix) -> Any:
    """Numbers of the columns, or number and word of each, since words alone may repeat."""
    if matrix.x_ticks is None:
        return matrix.x
    return [
        f"{number:.0f} {escape(word, quote=False)}"
        for number, word in zip(matrix.x, matrix.x_ticks, strict=True)
    ]


def _stacked(matrix: Matrix) -> Any:
    """(rows, columns, details) float32, which takes a third of the room of text."""
    if not matrix.details:
        return None
    return np.stack([values for _, values in matrix.details], axis=-1).astype(np.float32)


def _word(label: str) -> str:
    """A label without what it adds in brackets, for a sentence."""
    return escape(label.split(" (")[0].lower(), quote=False)
