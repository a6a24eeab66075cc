"""Charts of erasure and of integrated gradients: over tokens, and by point or layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .charts import PART_NAMES, PART_STYLES, Chart, Curve, Floats, Matrix, Panel, Style, floats
from .result_charts import interval_name

#: Tokens of a document, and panels, that a map shows.
TOKENS, PANELS = 40, 4

CASES = {
    "later": "one position erased, measured after it",
    "earlier": "all earlier positions erased, measured after them",
    "answer": "one position erased, measured where the answer is predicted",
}
_CASE_STYLES = {
    "later": Style("#0072b2", "circle", "solid"),
    "earlier": Style("#d55e00", "square", "dash"),
    "answer": Style("#009e73", "diamond", "dot"),
}

_ERASURE = (
    "The stream at one point and position is replaced by its mean over the corpus, and the "
    "next-token probabilities are compared with what they are otherwise (the largest L2 distance "
    "over the measured positions). Where the colours end, what the position holds at that point is "
    "no longer needed: later layers have taken up what they use of it."
)
_GRADIENTS = (
    "Integrated gradients: how much of the probability of the answer's tokens comes from what is "
    "added at a position, along the way from its mean over the document to itself. Negative values "
    "speak against the answer. The colours span what all but the first token reach. The "
    "completeness gap is what the attributions of a layer lack of the change they explain; more "
    "steps make it smaller."
)


def erasure_charts(result: xr.Dataset, model: str) -> tuple[Chart, Chart]:
    """By point, a curve per case; and over the tokens of the first documents."""
    curves = tuple(
        _curve(result.sel(case=case), "point", "output_l2", CASES[case], _CASE_STYLES[case])
        for case in result["case"].values.tolist()
    )
    subtitle = _subtitle(result, model)
    label = "L2 distance of probabilities"
    panel = Panel("Mean over documents and positions", "Point", label, curves)
    maps = _maps(result, "output_l2", "Point (erased)", label)
    return (
        Chart("erasure", "Erasure by depth", "Until which depth positions matter to predictions",
              subtitle, _ERASURE, (panel,)),
        Chart("erasure_tokens", "Erasure over tokens", "Which tokens matter, and until which depth",
              subtitle, _ERASURE, maps, across=1 if len(maps) == 1 else 2),
    )  # fmt: skip


def gradient_charts(result: xr.Dataset, model: str) -> tuple[Chart, Chart]:
    """By layer with the completeness gap, and over the tokens of the first documents."""
    parts = result["case"].values.tolist()
    curves = tuple(
        _curve(result.sel(case=part), "layer", "magnitude", PART_NAMES[part], PART_STYLES[part])
        for part in parts
    )
    gaps = tuple(
        Curve(
            PART_NAMES[part],
            floats(result["layer"]),
            floats(result["completeness_gap"].sel(case=part)),
            PART_STYLES[part],
            maximum=floats(result["completeness_gap_max"].sel(case=part)),
        )
        for part in parts
    )
    panels = (
        Panel("Size of the attribution, mean over documents and positions", "Layer",
              "|attribution|", curves),
        Panel("Completeness gap, mean over documents", "Layer", "Σ attribution − change", gaps,
              reference=0.0),
    )  # fmt: skip
    subtitle, label = _subtitle(result, model), "Attribution (probability)"
    maps = _maps(result, "attribution", "Layer", label)
    return (
        Chart("gradients", "Attribution by depth", "Which layers the answer comes from",
              subtitle, _GRADIENTS, panels),
        Chart("gradients_tokens", "Attribution over tokens",
              "At which tokens and layers the answer comes from", subtitle, _GRADIENTS, maps,
              across=1 if len(maps) == 1 else 2),
    )  # fmt: skip


def erasure_findings(result: xr.Dataset) -> list[str]:
    """Until which point erasing matters; a sentence per case."""
    told = []
    for case in result["case"].values.tolist():
        at = result.sel(case=case)
        means = floats(at["output_l2_mean"])
        if not np.isfinite(means).any():
            told.append(f"Erasure, {CASES[case]}: nothing was measured.")
            continue
        most = int(np.nanargmax(means))
        low, high = (float(at[f"output_l2_{end}"][most]) for end in ("low", "high"))
        told.append(
            f"Erasure, {CASES[case]}: the probabilities move most at point {most}, by "
            f"{means[most]:.2f} [{low:.2f}, {high:.2f}], and by less than half of that from point "
            f"{half_depth(means)} on, of {len(means) - 1} ({_documents(at)})."
        )
    return told


def gradient_findings(result: xr.Dataset) -> list[str]:
    """Where attributions are largest, and how far they are from complete; a sentence per part."""
    told = []
    for part in result["case"].values.tolist():
        at = result.sel(case=part)
        means = floats(at["magnitude_mean"])
        if not np.isfinite(means).any():
            told.append(f"Gradients, {PART_NAMES[part].lower()}: nothing was measured.")
            continue
        most = int(np.nanargmax(means))
        gap = float(at["completeness_gap_max"].max())
        change = float(np.abs(at["target_change"]).max())
        told.append(
            f"Gradients, {PART_NAMES[part].lower()}: attributions are largest at layer {most}; "
            f"their sums miss the change they explain (up to {change:.2g} on average) by {gap:.2g} "
            f"at most ({_documents(at)})."
        )
    return told


def half_depth(means: Floats) -> int:
    """The first point from which on every mean is below half of the largest."""
    above = np.flatnonzero(means >= np.nanmax(means) / 2)
    return int(above[-1]) + 1


def _documents(at: xr.Dataset) -> str:
    count = int(at["count"])
    return f"{count:,} document{'' if count == 1 else 's'}; {interval_name(at)}s in brackets"


def _subtitle(result: xr.Dataset, model: str) -> str:
    documents = int(result["count"].max())
    partial = result.attrs["effects_tasks"]
    unfinished = "" if len(set(partial.split(" of "))) < 2 else f" Unfinished: {partial} tasks."
    return (
        f"{model}; effects {result.attrs['parameters']['effects']}, {documents:,} "
        f"document{'' if documents == 1 else 's'}; bands: {interval_name(result)} over documents."
        + unfinished
    )


def _curve(at: xr.Dataset, axis: str, name: str, label: str, style: Style) -> Curve:
    low, high = (floats(at[f"{name}_{end}"]) for end in ("low", "high"))
    known = np.isfinite(low).any()
    return Curve(
        label,
        floats(at[axis]),
        floats(at[f"{name}_mean"]),
        style,
        low if known else None,
        high if known else None,
        floats(at[f"{name}_max"]),
    )


def _maps(result: xr.Dataset, name: str, y_label: str, value_label: str) -> tuple[Matrix, ...]:
    """The first documents, every case of one before the next document."""
    cases = result["case"].values.tolist()
    chosen = [
        (case, int(document)) for document in np.unique(result["document"].values) for case in cases
    ][: max(PANELS, len(cases))]
    return tuple(_map(result, name, case, document, y_label, value_label)
                 for case, document in chosen)  # fmt: skip


def _map(
    result: xr.Dataset, name: str, case: str, document: int, y_label: str, value_label: str
) -> Matrix:
    here = result.sel(case=case, row=result["document"] == document).isel(row=slice(TOKENS))
    values = floats(here[name])
    title = CASES.get(case, PART_NAMES.get(case, case))
    return Matrix(
        f"Document {document}\n{title}",
        "Token",
        y_label,
        value_label,
        floats(here["position"]),
        floats(here[y_label.split(" ")[0].lower()]),
        values,
        _limits(values[:, 1:]),
        x_ticks=tuple(_word(token) for token in here["token"].values.tolist()),
    )


def _limits(values: Floats) -> tuple[float, float]:
    """From 0, or as far below it as above, to what all but one in a hundred stay below."""
    shown = values[np.isfinite(values)]
    high = float(np.percentile(np.abs(shown), 99)) if shown.size else 1.0
    high = high if high > 0 else 1.0
    return (-high if shown.size and shown.min() < 0 else 0.0), high


def _word(token: Any) -> str:
    """A token that can be seen: spaces and line ends by their signs."""
    text = str(token).replace("\n", "↵").strip(" ") or "␣"
    return text if len(text) <= 10 else text[:9] + "…"
