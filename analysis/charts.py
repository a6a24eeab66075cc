"""What the figures show, apart from how they are drawn.

``result_charts`` makes a :class:`Chart` from a result dataset; ``figures`` (matplotlib) or
``interactive`` (plotly) draw it, so both show the same numbers and words.
Colours are the colour-blind-safe ones of Okabe and Ito, readable on white and on black; marker and
dash repeat what colour says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How a curve is told apart: ``dash`` is solid, dash or dot."""

    colour: str
    marker: str = "circle"
    dash: str = "solid"


PART_STYLES = {
    "attention": Style("#0072b2", "square", "dash"),
    "mlp": Style("#d55e00", "diamond", "dot"),
    "layer": Style("#009e73", "circle", "solid"),
}
TOKEN_SET_STYLES = {
    "content": Style("#0072b2", "circle", "solid"),
    "all": Style("#d55e00", "square", "dash"),
}
STORE_STYLES = (
    Style("#0072b2", "circle", "solid"),
    Style("#d55e00", "square", "dash"),
    Style("#009e73", "diamond", "dot"),
    Style("#b5599a", "triangle", "solid"),
    Style("#8c6d00", "cross", "dash"),
    Style("#4b8fd0", "circle", "dot"),
)
PART_NAMES = {"attention": "Attention", "mlp": "MLP", "layer": "Whole layer"}


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: ``mean`` over ``x`` with its interval where there is one (all of one length)."""

    label: str
    x: Floats
    mean: Floats
    style: Style
    low: Floats | None = None
    high: Floats | None = None
    maximum: Floats | None = None


def floats(values: xr.DataArray) -> Floats:
    """Values of a result, as they are drawn."""
    return np.asarray(values.values, dtype=np.float64)


def curve_of(
    result: xr.Dataset,
    name: str,
    ends: str,
    label: str,
    style: Style,
    *,
    axis: str = "point",
    layers: float = 1,
) -> Curve:
    """A variable of a result along one of its axes.

    Parameters
    ----------
    ends
        What stands before ``low`` and ``high`` in the names of its interval's ends; a result that
        has no such variables gives a curve without an interval.
    axis, layers
        Where it stands, and by how many layers that is divided.
    """
    low, high = (floats(result[ends + end]) if ends + end in result else None
                 for end in ("low", "high"))  # fmt: skip
    return Curve(label, floats(result[axis]) / layers, floats(result[name]), style, low, high)


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes; ``reference`` is a horizontal line that divides the meaning of values.

    ``form`` draws the intervals as bands around lines, or as whiskers on bars or points; points
    are joined where x is a number. ``x_ticks`` are words for the places 0, 1, 2 … where it is none.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    y_range: tuple[float, float] | None = None
    logarithmic: bool = False
    reference: float | None = None
    form: Literal["lines", "bars", "points"] = "lines"
    x_ticks: tuple[str, ...] | None = None

    @property
    def words(self) -> str:
        """The panel in a few words."""
        names = ", ".join(curve.label for curve in self.curves)
        return f"{self.y_label} against {self.x_label.lower()}, {self.title}: {names}"

    @property
    def whole(self) -> bool:
        """Whether x is whole numbers."""
        return all(np.array_equal(curve.x, np.round(curve.x)) for curve in self.curves)


def places(panel: Panel, number: int) -> tuple[Floats, float]:
    """Where the bars or points of a panel's curve stand, and how wide a bar is."""
    curve, count = panel.curves[number], len(panel.curves)
    gaps = np.diff(np.unique(np.concatenate([one.x for one in panel.curves])))
    room = 0.8 * float(gaps.min()) if gaps.size else 0.8
    if panel.form == "points" and panel.x_ticks is None:
        # Numbers on the axis must be true; overlapping whiskers are a lesser evil.
        return curve.x, room
    width = room / count
    return curve.x + (number - (count - 1) / 2) * width, width


@dataclass(frozen=True, eq=False)
class Matrix:
    """A heat map: rows downwards, columns to the right, NaN left blank.

    Attributes
    ----------
    title
        Stands above it.
    x_label, y_label, value_label
        What columns, rows and colours mean, with units.
    x, y
        Numbers of the columns and of the rows.
    values
        (rows, columns).
    limits
        Values of the first and last colour; values beyond have those colours.
    details
        Further values of the cells, (rows, columns) each, by the words that hovering shows.
    x_ticks
        Words for the columns, such as tokens, where they have any.
    """

    title: str
    x_label: str
    y_label: str
    value_label: str
    x: Floats
    y: Floats
    values: Floats
    limits: tuple[float, float]
    details: tuple[tuple[str, Floats], ...] = ()
    x_ticks: tuple[str, ...] | None = None

    @property
    def bar_label(self) -> str:
        """What colours mean, and how far values go where colours end before them."""
        shown = self.values[np.isfinite(self.values)]
        low, high = (shown.min(), shown.max()) if shown.size else self.limits
        if high > self.limits[1]:
            return f"{self.value_label}, up to {high:.3g}"
        if low < self.limits[0]:
            return f"{self.value_label}, down to {low:.3g}"
        return self.value_label

    @property
    def words(self) -> str:
        """The panel in a few words."""
        axes = f"{self.y_label.lower()} and {self.x_label.lower()}"
        return f"{self.value_label} by {axes}, {self.title}"


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure of one or more panels that can be read without its caption.

    Attributes
    ----------
    name
        File stem and anchor.
    heading
        What the figure is called in a list.
    title, subtitle
        Stand in the figure; the subtitle names the model and the sample.
    explanation
        How to read it and what it implies, with the definition.
    panels
        Left to right, all of one kind.
    same_y
        Whether the panels share one scale.
    across
        Panels in a row; None for what suits their number.
    """

    name: str
    heading: str
    title: str
    subtitle: str
    explanation: str
    panels: tuple[Panel | Matrix, ...]
    same_y: bool = False
    across: int | None = None

    @property
    def has_legend(self) -> bool:
        """Whether any panel has several curves to be told apart."""
        return any(isinstance(panel, Panel) and len(panel.curves) > 1 for panel in self.panels)

    @property
    def columns(self) -> int:
        """Panels in a row."""
        return self.across or (3 if len(self.panels) == 3 else min(len(self.panels), 2))

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return -(-len(self.panels) // self.columns)

    @property
    def alternative(self) -> str:
        """The figure in one sentence, for readers who do not see it."""
        panels = "; ".join(panel.words for panel in self.panels)
        return f"{self.title}. {self.subtitle} {panels}."
