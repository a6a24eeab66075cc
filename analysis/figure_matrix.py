"""Heat maps through matplotlib."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .charts import Matrix

COLOURS = "viridis"


def draw_matrix(matrix: Matrix, axis: Axes) -> None:
    """Draw a heat map with its colour bar; row 0 is at the top."""
    x, y = matrix.x, matrix.y
    image = axis.imshow(
        matrix.values,
        cmap=COLOURS,
        vmin=matrix.limits[0],
        vmax=matrix.limits[1],
        interpolation="nearest",
        aspect="auto",
        extent=(x[0] - 0.5, x[-1] + 0.5, y[-1] + 0.5, y[0] - 0.5),
    )
    axis.tick_params(length=2.5, width=0.7, labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    for line in (axis.xaxis, axis.yaxis):
        line.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if matrix.x_ticks is not None:
        # Tokens are text, in which a dollar sign would begin mathematics.
        words = [word.replace("$", r"\$") for word in matrix.x_ticks]
        axis.set_xticks(x, words, rotation=90, fontsize=5.5)
    axis.set_xlabel(matrix.x_label, fontsize=8.5)
    axis.set_ylabel(matrix.y_label, fontsize=8.5)
    axis.set_title(matrix.title, loc="left", fontsize=8.5, fontweight="bold")
    figure = axis.figure
    # Beside the axes instead of out of their room, so that the map stays square.
    inset = axis.inset_axes((1.03, 0.0, 0.045, 1.0))
    bar = figure.colorbar(image, cax=inset)
    bar.set_label(matrix.bar_label, fontsize=8)
    bar.outline.set_linewidth(0.4)
    inset.tick_params(length=2, width=0.5, labelsize=7)
