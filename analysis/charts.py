"""What the figures show, apart from how they are drawn.

``result_charts`` makes a :class:`Chart` from a result dataset; ``figures`` (matplotlib) or
``interactive`` (plotly) draw it, so both show the same numbers and words.
Colours are the colour-blind-safe ones of Okabe and Ito, readable on white and on black; marker and
dash repeat what colour says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes; ``reference`` is a horizontal line that divides the meaning of values."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    y_range: tuple[float, float] | None = None
    logarithmic: bool = False
    reference: float | None = None


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
        Left to right.
    same_y
        Whether the panels share one scale.
    """

    name: str
    heading: str
    title: str
    subtitle: str
    explanation: str
    panels: tuple[Panel, ...]
    same_y: bool = False

    @property
    def alternative(self) -> str:
        """The figure in one sentence, for readers who do not see it."""
        panels = "; ".join(
            f"{panel.y_label} against {panel.x_label.lower()}, {panel.title}: "
            f"{', '.join(curve.label for curve in panel.curves)}"
            for panel in self.panels
        )
        return f"{self.title}. {self.subtitle} {panels}."
