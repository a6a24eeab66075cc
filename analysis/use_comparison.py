"""How several models use their depth, laid over each other by relative depth.

A point's place is its number divided by the model's layers, so point L stands at 1; a layer's place
is that of the point it reads. Onset depths are divided likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from .charts import STORE_STYLES, Chart, Curve, Panel, Style, curve_of, floats
from .frequencies import BUCKETS
from .result_charts import LENS_PANELS, interval_name
from .result_kinds import kind_name
from .row_classes import ANY
from .use_charts import (
    BY,
    CROSSINGS,
    FLIPS,
    MANY,
    ONSET,
    TUNED,
    rank_title,
    rows_of,
    telling_ranks,
    token_set_of,
)

DEPTH = "Relative depth (point / layers)"

_PROBES = (
    "How well a linear probe reads the same label off the stream of every model, on documents that "
    "it was not trained on; the selectivity is its accuracy less that of the same probe on random "
    "labels, so it counts only what the stream says."
)
_GEOMETRY = (
    "Block influence is 1 - the cosine of a layer's input and output, linearity the share of its "
    "output that a linear map of its input gives. The effective rank, here as a share of the "
    "hidden size, says how many directions the stream uses, anisotropy how alike the vectors of "
    "two tokens are."
)


def use_comparison_charts(
    stores: Mapping[str, Mapping[str, xr.Dataset]],
) -> tuple[Chart, ...]:
    """A figure for every result that several stores have and that means the same in them.

    Parameters
    ----------
    stores
        For every store's label its results by name.
    """
    names = dict.fromkeys(name for results in stores.values() for name in results)
    charts = []
    for name in names:
        results = _alike({label: r[name] for label, r in stores.items() if name in r})
        draw = _CHARTS.get(kind_name(name) or "")
        if draw is not None and len(results) > 1:
            charts.append(draw(f"compared_{name}", results))
    return tuple(charts)


def _alike(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Those that ask the first one's question: the same label, pooling, classes and target."""

    def question(result: xr.Dataset) -> list[object]:
        asked = result.attrs["parameters"]
        return [result.attrs.get("label"), result.attrs.get("units"),
                *(asked.get(name) for name in ("by", "target"))]  # fmt: skip

    first = question(next(iter(results.values())))
    return {label: result for label, result in results.items() if question(result) == first}


def _flips(name: str, results: Mapping[str, xr.Dataset]) -> Chart:
    chosen = _shown(results)
    commonest = f"ranks {BUCKETS[0]}"
    wanted = (
        ("Overturned guesses", "Share of all best guesses", "rate", ANY, ""),
        (f"Overturned guesses, {commonest}", "Share of those guesses", "rate", BUCKETS[0], ""),
        (f"Guesses of {commonest}", "Share of all best guesses", "share", BUCKETS[0], "share_"),
    )
    panels = tuple(
        Panel(
            title,
            DEPTH,
            y_label,
            _curves({k: one.sel(bucket=bucket) for k, one in chosen.items()}, value, ends),
            (0.0, 1.03),
        )
        for title, y_label, value, bucket, ends in wanted
    )
    title = "How often early guesses are overturned, side by side"
    subtitle = f"Ranks: by token frequency. {_samples(results, rows_of)}"
    return Chart(name, "Flips of early guesses", title, subtitle, FLIPS, panels)


def _onset(name: str, results: Mapping[str, xr.Dataset]) -> Chart:
    first = next(iter(results.values()))
    criterion, words = CROSSINGS[-1]
    chosen = {
        label: one.sel(outcome="all", criterion=criterion) for label, one in _shown(results).items()
    }
    labels = np.concatenate([one["class"].values for one in chosen.values()])
    classes = [x for x in dict.fromkeys(labels) if any(_used(one, x) for one in chosen.values())]
    ranks = [k for k in telling_ranks(first) if all(k in r["rank"] for r in results.values())]
    heading, x_label = BY[first.attrs["parameters"]["by"]]
    panels = tuple(
        _onset_panel({k: one.sel(rank=rank) for k, one in chosen.items()}, x_label, classes)
        for rank in ranks
    )
    return Chart(
        name,
        f"Onset by {heading}",
        "At which share of the layers a token becomes a candidate for good, side by side",
        f"{words}. {_samples(results, rows_of)}",
        ONSET,
        panels,
        same_y=True,
        across=1 if len(classes) >= MANY else None,
    )


def _onset_panel(chosen: Mapping[str, xr.Dataset], x_label: str, classes: list[str]) -> Panel:
    places, curves = np.arange(len(classes), dtype=np.float64), []
    for (label, one), style in zip(chosen.items(), _styles(chosen), strict=True):
        at, layers = one.reindex({"class": classes}), one.attrs["layers"]
        depths = (floats(at[value]) / layers for value in ("depth_mean", "low", "high"))
        mean, low, high = depths
        curves.append(Curve(label, places, mean, style, low, high))
    first = next(iter(chosen.values()))
    return Panel(
        rank_title(int(first["rank"]), first.attrs["parameters"]["by"]),
        x_label,
        "Mean relative depth (point / layers)",
        tuple(curves),
        (0.0, 1.03),
        form="points",
        x_ticks=tuple(map(str, classes)),
    )


def _tuned_lens(name: str, results: Mapping[str, xr.Dataset]) -> Chart:
    chosen = _shown(results)
    panels = tuple(
        Panel(title, DEPTH, label, _curves(chosen, f"{measure}_mean", f"{measure}_"), limits)
        for measure, (title, label, limits) in LENS_PANELS.items()
    )
    return Chart(name, "The tuned lens", "When the translated predictions settle, side by side",
                 _samples(results, rows_of), TUNED, panels)  # fmt: skip


def _probes(name: str, results: Mapping[str, xr.Dataset]) -> Chart:
    field = next(iter(results.values())).attrs["label"]
    pooled = {label: result.isel(label=0) for label, result in results.items()}
    panels = (
        Panel("Accuracy", DEPTH, "Accuracy", _curves(pooled, "accuracy", ""), (0.0, 1.03)),
        Panel("Selectivity", DEPTH, "Accuracy less control accuracy",
              _curves(pooled, "selectivity", "selectivity_"), reference=0.0),
    )  # fmt: skip

    def said(result: xr.Dataset) -> str:
        return f"{int(result.attrs['documents']):,} documents"

    title = f"From which depth on {field} can be read, side by side"
    return Chart(name, f"Probes of {field}", title,
                 _samples(results, said), _PROBES, panels)  # fmt: skip


def _geometry(name: str, results: Mapping[str, xr.Dataset]) -> Chart:
    chosen = {label: result.sel(token_set="content") for label, result in results.items()}
    shares = {
        label: one.assign(effective_rank=one["effective_rank"] / one.sizes["dimension"])
        for label, one in chosen.items()
    }
    wanted = (
        ("Block influence", "1 - cosine of input and output", "block_influence", "layer"),
        ("Linearity", "R² of the best linear map", "linearity", "layer"),
        ("Effective rank", "Directions / hidden size", "effective_rank", "point"),
        ("Anisotropy", "Mean cosine of two tokens", "anisotropy", "point"),
    )
    panels = tuple(
        Panel(title, DEPTH.replace("point", axis), label, _curves(shares, value, f"{value}_", axis))
        for title, label, value, axis in wanted
    )

    def said(result: xr.Dataset) -> str:
        return f"{int(result['count'].sel(token_set='content')):,} content tokens"

    title = "How the stream changes and how many directions it uses, side by side"
    return Chart(name, "Geometry", title,
                 _samples(results, said), _GEOMETRY, panels)  # fmt: skip


_CHARTS: dict[str, Callable[[str, Mapping[str, xr.Dataset]], Chart]] = {
    "tuned_lens": _tuned_lens,
    "flips": _flips,
    "onset": _onset,
    "probes": _probes,
    "geometry": _geometry,
}


def _curves(
    results: Mapping[str, xr.Dataset], name: str, ends: str, axis: str = "point"
) -> tuple[Curve, ...]:
    found = []
    for (label, at), style in zip(results.items(), _styles(results), strict=True):
        layers = at.attrs.get("layers") or at.sizes["layer"]
        found.append(curve_of(at, name, ends, label, style, axis=axis, layers=layers))
    return tuple(found)


def _shown(results: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    return {label: one.sel(token_set=token_set_of(one)) for label, one in results.items()}


def _styles(results: Mapping[str, xr.Dataset]) -> list[Style]:
    return [STORE_STYLES[number % len(STORE_STYLES)] for number in range(len(results))]


def _samples(results: Mapping[str, xr.Dataset], said: Callable[[xr.Dataset], str]) -> str:
    samples = "; ".join(f"{label}: {said(result)}" for label, result in results.items())
    first = next(iter(results.values()))
    return f"{samples}. Intervals: {interval_name(first)} over documents."


def _used(at: xr.Dataset, label: str) -> bool:
    rows = at["class_rows"].isel(rank=0)
    return label in at["class"] and bool(rows.sel({"class": label}) > 0)
