"""Figures show the datasets' numbers, and say in themselves what they show."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import depthscope.analysis.accessor  # noqa: F401  registers the accessor
import matplotlib.image
import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from depthscope.analysis.charts import Chart
from depthscope.analysis.figures import draw, save_png
from depthscope.analysis.interactive import interactive
from depthscope.analysis.result_charts import (
    comparison_charts,
    contribution_charts,
    lens_chart,
)
from depthscope.storage.errors import RequestError
from matplotlib.figure import Figure

from .synthetic_results import contributions, lens

RATIO = [12.0, 0.9, 0.4, 0.3, 0.2, 0.6]
COSINE = [-0.1, 0.2, -0.3, -0.1, 0.2, 0.4]
KL = [9.0, 6, 5, 4, 2, 1, 0]
AGREEMENT = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1]


def results() -> tuple[xr.Dataset, xr.Dataset]:
    return contributions(RATIO, COSINE), lens(KL, AGREEMENT)


def every_chart() -> list[Chart]:
    added, guessed = results()
    deeper = contributions([*RATIO, *RATIO], [*COSINE, *COSINE]), lens([*KL, *KL], AGREEMENT * 2)
    return [
        *contribution_charts(added, "tiny"),
        lens_chart(guessed, "tiny"),
        *comparison_charts({"a": added, "b": deeper[0]}, {"a": guessed, "b": deeper[1]}),
    ]


def drawn_lines(figure: Figure) -> list[np.ndarray]:
    return [
        np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_marker() not in ("None", "", None)
    ]


def traces(figure: go.Figure) -> list[Any]:
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    return "\n".join(found)


def test_both_engines_draw_the_datasets_numbers() -> None:
    added, guessed = results()
    size, direction = contribution_charts(added, "tiny")
    wanted = {
        size: [added.norm_ratio_mean.sel(token_set=s, part=p).values
               for s in ("content", "all") for p in ("attention", "mlp", "layer")],
        direction: [added.cosine_mean.sel(token_set=s, part=p).values
                    for s in ("content", "all") for p in ("attention", "mlp", "layer")],
        lens_chart(guessed, "tiny"): [guessed[f"{m}_mean"].sel(token_set=s).values
                                      for m in ("kl", "entropy", "top5_overlap", "top1_agreement")
                                      for s in ("content", "all")],
    }  # fmt: skip
    for chart, curves in wanted.items():
        lines, drawn = drawn_lines(draw(chart)), traces(interactive(chart))
        assert len(lines) == len(drawn) == len(curves)
        for values, line, trace in zip(curves, lines, drawn, strict=True):
            np.testing.assert_array_equal(line[:, 1], values)
            np.testing.assert_array_equal(np.asarray(trace.y, float), values)
            np.testing.assert_array_equal(line[:, 0], np.arange(len(values)))


def test_bands_are_the_intervals() -> None:
    added, _ = results()
    figure = interactive(contribution_charts(added, "tiny")[1])
    edges = [np.asarray(t.y, float) for t in figure.data if t.mode == "lines"]
    chosen = added.sel(token_set="content", part="attention")
    np.testing.assert_array_equal(edges[0], chosen.cosine_low.values)
    np.testing.assert_array_equal(edges[1], chosen.cosine_high.values)
    assert len(edges) == 12
    assert "[-0.055, -0.035]" in figure.data[2].customdata[0]
    bands = draw(contribution_charts(added, "tiny")[1]).axes[0].collections
    assert len(bands) == 3
    ends = np.asarray(bands[0].get_paths()[0].vertices)[:, 1]
    assert ends.min() == pytest.approx(chosen.cosine_low.min().item())
    assert ends.max() == pytest.approx(chosen.cosine_high.max().item())


@pytest.mark.parametrize("number", range(6))
def test_figures_stand_alone(number: int) -> None:
    chart = every_chart()[number]
    words = texts(draw(chart))
    assert chart.title in words
    assert "of 47 documents" in words
    assert "95% bootstrap interval over documents" in words
    assert all(panel.x_label and panel.y_label for panel in chart.panels)
    layout = interactive(chart).layout
    spoken = " ".join([layout.title.text, layout.title.subtitle.text,
                       *(note.text for note in layout.annotations)])  # fmt: skip
    assert chart.title in spoken
    assert "of 47 documents" in spoken
    axes = [value for name, value in layout.to_plotly_json().items() if "axis" in name]
    assert len(axes) == 2 * len(chart.panels)
    assert all(axis["title"]["text"] for axis in axes)
    assert chart.title in chart.alternative
    labels = [curve.label for curve in chart.panels[0].curves]
    assert [
        trace.name for trace in interactive(chart).data if trace.showlegend is not False
    ] == labels


def test_log_axis_only_where_it_helps() -> None:
    def logarithmic(ratio: list[float]) -> bool:
        chart, _ = contribution_charts(contributions(ratio, COSINE[: len(ratio)]), "tiny")
        axes = draw(chart).axes
        assert {axis.get_yscale() for axis in axes} == {
            "log" if chart.panels[0].logarithmic else "linear"
        }
        return chart.panels[0].logarithmic

    assert logarithmic(RATIO)
    assert not logarithmic([0.5, 0.4, 0.3])
    assert not logarithmic([50.0, 0.0, 0.3])


def test_stores_share_the_axis_of_relative_depth() -> None:
    short, deep = contributions(RATIO, COSINE), contributions(RATIO * 2, COSINE * 2)
    size, direction, guesses = comparison_charts(
        {"short": short, "deep": deep},
        {"short": lens(KL, AGREEMENT), "deep": lens(KL * 2, AGREEMENT * 2)},
    )
    assert [panel.title for panel in size.panels] == ["Whole layer", "Attention", "MLP"]
    first, second = size.panels[0].curves
    np.testing.assert_allclose(first.x, np.arange(6) / 6)
    np.testing.assert_allclose(second.x, np.arange(12) / 12)
    np.testing.assert_array_equal(
        second.mean, deep.norm_ratio_mean.sel(token_set="content", part="layer")
    )
    assert guesses.panels[0].curves[0].x[-1] == guesses.panels[0].curves[1].x[-1] == 1
    assert direction.panels[0].reference == 0
    assert comparison_charts({"one": short}, {}) == ()


@pytest.mark.parametrize("number", range(6))
def test_png(tmp_path: Path, number: int) -> None:
    chart = every_chart()[number]
    path = tmp_path / "new" / f"{chart.name}.png"
    save_png(chart, path)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 2000
    assert 600 < height < 1600
    pixels = matplotlib.image.imread(path)[:, :, :3]
    for curve in chart.panels[0].curves:
        colour = [int(curve.style.colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        # The last curve may cover the others, but every one is in the legend.
        assert (np.abs(pixels - colour).max(axis=2) < 0.02).sum() > 100


def test_names_are_only_text() -> None:
    name = "$\\frac{a <b>bold</b> & $"
    chart = lens_chart(lens(KL, AGREEMENT), name)
    assert name in texts(draw(chart))
    assert "&lt;b&gt;bold&lt;/b&gt; &amp;" in interactive(chart).layout.title.subtitle.text


def test_accessor() -> None:
    added, guessed = results()
    assert isinstance(added.depthscope.plot(), Figure)
    assert "How much" in texts(added.depthscope.plot())
    assert "strengthens" in texts(added.depthscope.plot("cosines"))
    assert isinstance(guessed.depthscope.plot(engine="plotly"), go.Figure)
    assert "tiny, 6 layers" in texts(guessed.depthscope.plot())
    recomputed = guessed.assign_attrs(analysis="lens_activations")
    assert recomputed.depthscope.charts()[0].name == "lens"
    with pytest.raises(RequestError, match="there are contributions, cosines"):
        added.depthscope.plot("heat")
    with pytest.raises(RequestError, match="matplotlib or plotly"):
        added.depthscope.plot(engine="paper")
    with pytest.raises(RequestError, match="no figure"):
        xr.Dataset().depthscope.plot()
