"""Figures of interventions show the results' numbers, and say in themselves what they show."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import depthscope.analysis.accessor  # noqa: F401  registers the accessor
import numpy as np
import pytest
import xarray as xr
from depthscope.analysis.charts import Chart, Matrix, Panel
from depthscope.analysis.depth import depth
from depthscope.analysis.depth_charts import depth_chart, depth_score_chart
from depthscope.analysis.depth_score import depth_score
from depthscope.analysis.depth_table import depth_table, ratio_table
from depthscope.analysis.effect_charts import (
    compared_interactions,
    interaction_charts,
    output_charts,
)
from depthscope.analysis.effect_findings import (
    depth_findings,
    depth_score_findings,
    interaction_findings,
)
from depthscope.analysis.figures import draw, save_png
from depthscope.analysis.interactions import interactions
from depthscope.analysis.interactive import interactive
from depthscope.analysis.store import open as open_store
from depthscope.storage.errors import RequestError

from .effects_store import add_effects
from .small_store import build

LAYERS = 5


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, xr.Dataset]:
    """Every result of one small store, and the interactions of a deeper one."""
    folder = tmp_path_factory.mktemp("stores")
    store = build(folder / "s", layers=LAYERS, lengths=[6] * 20, task_rows=64)
    add_effects(store.root, documents=range(20))
    run = open_store(store.root)
    deeper = build(folder / "d", layers=LAYERS + 3, seed=1)
    add_effects(deeper.root, seed=4, parts=("layer",))
    return {
        "interactions": interactions(run, resamples=50),
        "depth_score": depth_score(run, "subject", resamples=50),
        "numbers": depth_score(run, "difficulty", resamples=50, out=folder / "n.zarr"),
        "depth": depth(run, resamples=50),
        "deeper": interactions(open_store(deeper.root), resamples=50),
    }


def matrices(chart: Chart) -> list[Matrix]:
    return [panel for panel in chart.panels if isinstance(panel, Matrix)]


def panels(chart: Chart) -> list[Panel]:
    return [panel for panel in chart.panels if isinstance(panel, Panel)]


def test_matrices_show_the_strict_upper_triangle(results: dict[str, xr.Dataset]) -> None:
    result = results["interactions"]
    charts = {chart.name: chart for chart in interaction_charts(result, "tiny")}
    assert set(charts) == {
        f"interactions_{scope}_{kind}"
        for scope in ("future", "all")
        for kind in ("propagated", "local")
    }
    for name, chart in charts.items():
        _, scope, kind = name.split("_")
        drawn = interactive(chart).data
        images = [axes.images[0] for axes in draw(chart).axes if axes.images]
        assert len(drawn) == len(images) == len(chart.panels) == 6
        wanted = [
            result[variable].sel(scope=scope, kind=kind, part=part)
            for variable in ("effect_mean", "effect_max")
            for part in ("layer", "attention", "mlp")
        ]
        inside = np.triu(np.ones((LAYERS, LAYERS), bool), 1)
        for matrix, trace, image, values in zip(
            matrices(chart), drawn, images, wanted, strict=True
        ):
            shown = np.asarray(trace.z, float)
            np.testing.assert_array_equal(np.isfinite(shown), inside)
            np.testing.assert_array_equal(shown[inside], values.values.astype(float)[inside])
            np.testing.assert_array_equal(shown, matrix.values)
            masked = np.ma.filled(np.ma.masked_invalid(image.get_array()), np.nan)
            np.testing.assert_array_equal(masked, matrix.values)
            # Row 0 is at the top in both.
            left, right, bottom, top = image.get_extent()
            assert (left, right, bottom, top) == (-0.5, LAYERS - 0.5, LAYERS - 0.5, -0.5)
            assert trace.zmin == matrix.limits[0] == 0
            assert trace.zmax == matrix.limits[1] == image.norm.vmax > 0


def test_hovering_shows_interval_and_documents(results: dict[str, xr.Dataset]) -> None:
    result = results["interactions"]
    at = result.sel(scope="future", kind="propagated", part="layer")
    trace = interactive(interaction_charts(result, "tiny")[0]).data[0]
    details = np.asarray(trace.customdata)
    for number, name in enumerate(("effect_low", "effect_high", "count")):
        np.testing.assert_allclose(details[..., number], at[name].values, rtol=1e-6)
    assert "source layer %{y} → target layer %{x}" in trace.hovertemplate
    assert "95% interval from %{customdata[0]" in trace.hovertemplate
    assert "documents %{customdata[2]" in trace.hovertemplate


def test_matrices_stand_alone(results: dict[str, xr.Dataset]) -> None:
    for chart in interaction_charts(results["interactions"], "tiny"):
        words = "\n".join(text.get_text() for text in draw(chart).texts)
        layout = interactive(chart).layout
        for text in (words, layout.title.text + layout.title.subtitle.text):
            assert chart.title in text
            assert "tiny, 5 layers" in text.replace("\n", " ")
            assert "20 documents" in text.replace("\n", " ")
        assert "30 splits" in words or "_all_" in chart.name
        assert "Noise floor" in words
        assert "left out" in words
        figure = draw(chart)
        labelled = [axes for axes in figure.axes if axes.images]
        assert {axes.get_xlabel() for axes in labelled} == {"Target layer (measured)"}
        assert {axes.get_ylabel() for axes in labelled} == {"Source layer (changed)"}
        bars = [child for axes in labelled for child in axes.child_axes]
        labels = {bar.get_ylabel().split(", up to ")[0] for bar in bars}
        assert labels == {"Relative change ‖c − c′‖ / ‖c‖"}
        assert len(bars) == len(labelled)
        assert all(trace.colorbar.title.text for trace in interactive(chart).data)
        assert "source layer" in chart.alternative
        assert layout.hovermode == "closest"


def test_output_bars_have_intervals(results: dict[str, xr.Dataset]) -> None:
    result = results["interactions"]
    charts = output_charts(result, "tiny")
    assert [chart.name for chart in charts] == ["output_effects_future", "output_effects_all"]
    at = result.sel(scope="future", kind="propagated")
    wanted = [(m, p) for m in ("output_l2", "output_kl") for p in ("layer", "attention", "mlp")]
    traces = interactive(charts[0]).data
    axes = draw(charts[0]).axes
    for (measure, part), trace, axis in zip(wanted, traces, axes, strict=True):
        mean, low, high = (at[f"{measure}_{k}"].sel(part=part).values
                           for k in ("mean", "low", "high"))  # fmt: skip
        np.testing.assert_array_equal(trace.y, mean)
        np.testing.assert_allclose(trace.error_y.array, high - mean)
        np.testing.assert_allclose(trace.error_y.arrayminus, mean - low)
        np.testing.assert_allclose([bar.get_height() for bar in axis.patches], mean)
        ends = np.array([path.vertices[:, 1] for path in axis.collections[0].get_paths()])
        np.testing.assert_allclose(ends, np.stack([low, high], axis=1))
        unit = "nats" if measure == "output_kl" else "L2"
        assert unit in axis.get_ylabel()


def test_depth_score_against_level(results: dict[str, xr.Dataset]) -> None:
    words, numbers = (depth_score_chart(results[n], "tiny") for n in ("depth_score", "numbers"))
    for chart, result in ((words, results["depth_score"]), (numbers, results["numbers"])):
        traces = interactive(chart).data
        for measure, trace, panel in zip(("layer", "output"), traces, panels(chart), strict=True):
            at = result.sel(measure=measure)
            np.testing.assert_array_equal(trace.y, at.score)
            np.testing.assert_allclose(trace.error_y.array, at.high - at.score)
            assert panel.curves[0].low is not None
            assert f"{int(at['count'].sum())} documents" in panel.title
            assert "p = " in panel.title
        assert [panel.reference for panel in panels(chart)] == [(LAYERS - 2) / 2, (LAYERS - 1) / 2]
    assert panels(words)[0].x_ticks == ("facts", "maths")
    assert panels(numbers)[0].x_ticks is None
    ticks = [label.get_text() for label in draw(words).axes[0].get_xticklabels()]
    assert ticks == ["facts", "maths"]
    x = np.asarray(interactive(numbers).data[0].x)
    assert x.tolist() == results["numbers"].level.values.tolist()


def crossing(result: xr.Dataset, ratios: list[float]) -> xr.Dataset:
    """The same result with these ratios; NaN where nothing crosses."""
    found = result.copy(deep=True)
    found["ratio"].values[:] = ratios
    found["ratio_low"].values[:] = np.array(ratios) - 0.1
    found["ratio_high"].values[:] = np.array(ratios) + 0.1
    found["crossed"].values[:] = np.isfinite(ratios)
    found["effective_depth"].values[:] = np.array(ratios) * LAYERS - 1
    return found


def test_effective_depth_of_several_stores(results: dict[str, xr.Dataset]) -> None:
    first = crossing(results["depth"], [0.4, 0.6, np.nan])
    second = crossing(results["depth"], [0.2, np.nan, 0.8])
    chart = depth_chart({"a": first, "b": second})
    assert chart is not None
    traces = interactive(chart).data
    for trace, result in zip(traces, (first, second), strict=True):
        np.testing.assert_array_equal(trace.y, result.ratio)
        np.testing.assert_allclose(trace.error_y.array, 0.1 * np.sign(result.ratio))
    assert [trace.name for trace in traces] == ["a (5 layers)", "b (5 layers)"]
    assert not np.intersect1d(traces[0].x, traces[1].x).size
    assert draw(chart).axes[0].get_ylim() == (0, 1.05)
    table = depth_table({"a": first, "b": second})
    assert table["store"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["rule"].tolist() == ["cosine", "kl", "overlap"] * 2
    np.testing.assert_array_equal(table["ratio"], [0.4, 0.6, np.nan, 0.2, np.nan, 0.8])
    assert table["crossed"].tolist() == [True, True, False, True, False, True]
    nothing = crossing(results["depth"], [np.nan] * 3)
    assert depth_chart({"a": nothing}) is None
    assert len(depth_table({"a": nothing})) == 3


def test_ratios_over_models_sizes_and_corpora(results: dict[str, xr.Dataset]) -> None:
    stores = {}
    for name, model, size, corpus, ratios in (
        ("a", "m", 135e6, "sums", [0.4, 0.6, np.nan]),
        ("b", "m", 135e6, "facts", [0.2, np.nan, np.nan]),
        ("c", "n", 7.62e9, "facts", [0.6, 0.8, 0.5]),
    ):
        stores[name] = crossing(results["depth"], ratios)
        stores[name].attrs |= {"model": model, "model_parameters": int(size), "corpus": corpus}
        stores[name]["crossed_share"].values[:] = [1, 0.25, 0]
    table = ratio_table(stores)
    assert table["store"].tolist() == ["a", "b", "c", "mean of 2", "mean of 2"]
    assert table["size"].tolist() == ["135M", "135M", "7.62B", "", ""]
    # One model has one size here, so their means are the same and told once.
    assert table["model"].tolist() == ["m", "m", "n", "m", ""]
    assert table["corpus"].tolist() == ["sums", "facts", "facts", "", "facts"]
    assert table["cosine"].tolist() == [
        "0.40 [0.30, 0.50]", "0.20 [0.10, 0.30]", "0.60 [0.50, 0.70]", "0.30", "0.40",
    ]  # fmt: skip
    assert table["kl"].tolist() == [
        "0.60 [0.50, 0.70] in 25% of resamples", "no crossing, but in 25% of resamples",
        "0.80 [0.70, 0.90] in 25% of resamples", "0.60 of 1", "0.80 of 1",
    ]  # fmt: skip
    assert table["overlap"].tolist()[:2] == ["no crossing"] * 2
    assert table["overlap"].tolist()[3:] == ["no crossing", "0.50 of 1"]
    stores["a"]["count"].values[0] = 0
    assert ratio_table(stores)["cosine"][0] == "not measured"


def test_models_side_by_side_share_one_scale(results: dict[str, xr.Dataset]) -> None:
    both = {"first": results["interactions"], "second": results["deeper"]}
    charts = compared_interactions(both)
    assert [chart.name for chart in charts] == [
        "compared_interactions_future",
        "compared_interactions_all",
    ]
    left, right = matrices(charts[0])
    assert left.title == "first\n20 documents, 30 splits"
    assert left.limits == right.limits
    assert left.values.shape == (LAYERS, LAYERS)
    assert right.values.shape == (LAYERS + 3, LAYERS + 3)
    at = results["deeper"].effect_mean.sel(scope="future", kind="propagated", part="layer")
    inside = np.triu(np.ones(right.values.shape, bool), 1)
    np.testing.assert_array_equal(right.values[inside], at.values[inside])
    assert compared_interactions({"first": both["first"]}) == ()


def test_a_few_huge_effects_do_not_hide_the_others(results: dict[str, xr.Dataset]) -> None:
    huge = results["deeper"].copy(deep=True)
    huge["effect_mean"].loc[{"source": 0, "target": 1}] = 1e6
    assert matrices(interaction_charts(huge, "tiny")[0])[0].limits[1] < 1e6


def test_png(results: dict[str, xr.Dataset], tmp_path: Path) -> None:
    result = results["interactions"]
    charts = [
        interaction_charts(result, "tiny")[0],
        interaction_charts(results["deeper"], "tiny")[0],
        output_charts(result, "tiny")[0],
        depth_score_chart(results["depth_score"], "tiny"),
    ]
    for number, chart in enumerate(charts):
        path = tmp_path / f"{number}.png"
        save_png(chart, path)
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 2000
        assert 600 < height < 1700


def test_accessor(results: dict[str, xr.Dataset]) -> None:
    charts = results["interactions"].depthscope.charts()
    assert len(charts) == 4 + 2
    assert results["interactions"].depthscope.plot("output_effects_all", engine="plotly")
    assert results["depth_score"].depthscope.plot()
    assert crossing(results["depth"], [0.4, 0.6, 0.8]).depthscope.plot()
    with pytest.raises(RequestError, match="depth where a curve crosses"):
        crossing(results["depth"], [np.nan] * 3).depthscope.plot()


def test_sentences(results: dict[str, xr.Dataset]) -> None:
    result = results["interactions"].copy(deep=True)
    place: dict[str, Any] = {"scope": "future", "kind": "propagated", "part": "layer"}
    for name, value in (("effect_mean", 3.0), ("effect_low", 2.5), ("effect_high", 3.5)):
        result[name].loc[{**place, "source": 1, "target": 3}] = value
    (sentence,) = interaction_findings(result)
    assert "layer 1 moves layer 3 by 3.00 [2.50, 3.50]" in sentence
    assert "(20 documents, 30 splits; 95% intervals in brackets)" in sentence
    matrix = result.effect_mean.sel(place).values
    early = np.mean([matrix[s, t] for s in range(2) for t in range(s + 1, LAYERS)])
    assert f"first half moves what a later one adds at future positions by {early:.2f}" in sentence

    (told,) = depth_findings(crossing(results["depth"], [0.4, np.nan, 0.8]))
    assert "last turns positive at layer 1 [" in told
    assert "0.40 of the depth" in told
    assert "no layer at which the divergence to the final prediction falls below 0.5" in told

    later, output = depth_score_findings(results["depth_score"])
    cell = results["depth_score"].sel(measure="layer")
    assert f"is layer {float(cell.score[0]):.1f} [" in later
    assert f"p = {float(cell.trend_p):.2g}, 20 documents" in later
    assert "predictions" in output
    flat = results["depth_score"].copy(deep=True)
    flat["trend_p"][:] = np.nan
    assert "allow no test of a trend" in depth_score_findings(flat)[0]


def test_a_colour_bar_says_how_far_values_go_beyond_it() -> None:
    values = np.array([[np.nan, 0.5], [np.nan, 4.0]])
    numbers = np.arange(2.0)
    cut = Matrix("t", "x", "y", "effect", numbers, numbers, values, (0.0, 1.0))
    assert cut.bar_label == "effect, up to 4"
    whole = Matrix("t", "x", "y", "effect", numbers, numbers, values, (0.0, 4.0))
    assert whole.bar_label == "effect"
    below = Matrix("t", "x", "y", "effect", numbers, numbers, -values, (-1.0, 1.0))
    assert below.bar_label == "effect, down to -4"
